"""A Kubernetes of its own for measurements: real API server, etcd, scheduler, controllers and training operator as
plain processes, and simulated nodes (kwok). No root, no containers; another cluster of this machine is not touched."""

from __future__ import annotations

import base64
import collections
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

HERE = Path(__file__).parent
TOOLS = Path(os.environ.get("CASPI_CLUSTER_HOME", Path.home() / ".cache/caspi/cluster")) / "bin"
OPERATOR = "github.com/kubeflow/training-operator@v1.9.4"
CERTIFICATES = Path("/tmp/k8s-webhook-server/serving-certs")
"""The operator knows no other place."""
CLIENTS = ("person", "operator", "controllers", "scheduler", "kwok", "watcher")
WEBHOOKS = "validator.training-operator.kubeflow.org"


@dataclass(slots=True)
class SimulatedCluster:
    """Starts on entering, ends and forgets everything on leaving."""

    folder: Path
    operator_flags: Sequence[str] = ()
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    certified: bool = False

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started.values():
            process.kill()  # nothing is to be kept, and a polite API server takes a minute
            process.wait()
        if self.certified:
            shutil.rmtree(CERTIFICATES.parent)

    def kubeconfig(self, client: str) -> Path:
        """Of one of CLIENTS. All may do everything: who asked is what is told apart."""
        path = self.folder / f"{client}.kubeconfig"
        server = {"server": f"https://127.0.0.1:{self.ports['api']}", "insecure-skip-tls-verify": True}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "simulated", "cluster": server}],
            "users": [{"name": client, "user": {"token": client}}],
            "contexts": [{"name": "simulated", "context": {"cluster": "simulated", "user": client}}],
            "current-context": "simulated",
        }
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path

    def http(self, client: str = "watcher") -> httpx.Client:
        """The API as `client`. The server's certificate is a minute old and its own: not verified."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.ports['api']}",
            headers={"Authorization": f"Bearer {client}"},
            verify=False,
            timeout=60,
            trust_env=False,
        )

    def requests(self) -> collections.Counter[tuple[str, str, str]]:
        """(client, verb, resource) -> requests so far, without watches, from the audit log."""
        found: collections.Counter[tuple[str, str, str]] = collections.Counter()
        for line in (self.folder / "audit.log").read_text().splitlines():
            event = json.loads(line)
            client = event["user"]["username"]
            if client in CLIENTS and event["verb"] != "watch":
                resource = event.get("objectRef", {})
                name = "/".join(part for part in (resource.get("resource"), resource.get("subresource")) if part)
                found[client, event["verb"], name or "discovery"] += 1
        return found

    def pace(self, client: str, verb: str, resource: str) -> tuple[float, float]:
        """Medians of such requests, seconds: how long the API server took for one, and from one to the next."""
        spans = []
        for line in (self.folder / "audit.log").read_text().splitlines():
            event = json.loads(line)
            asked = event["user"]["username"], event["verb"], event.get("objectRef", {}).get("resource")
            if asked == (client, verb, resource):
                ends = event["requestReceivedTimestamp"], event["stageTimestamp"]
                spans.append([datetime.fromisoformat(end).timestamp() for end in ends])
        spans.sort()
        gaps = [later[0] - earlier[0] for earlier, later in itertools.pairwise(spans)]
        return statistics.median(end - begin for begin, end in spans), statistics.median(gaps)

    def stored(self) -> dict[str, int]:
        """Resource -> bytes of all its objects in etcd, keys included; "" is what the database uses."""
        etcd = httpx.Client(base_url=f"http://127.0.0.1:{self.ports['etcd']}", timeout=60, trust_env=False)
        with etcd:
            whole = {"key": _base64(b"/registry/"), "range_end": _base64(b"/registry0")}
            sizes: collections.Counter[str] = collections.Counter()
            for pair in etcd.post("/v3/kv/range", json=whole).raise_for_status().json()["kvs"]:
                key = base64.b64decode(pair["key"])
                sizes[key.decode().split("/")[2]] += len(key) + len(base64.b64decode(pair.get("value", "")))
            sizes[""] = int(etcd.post("/v3/maintenance/status", json={}).raise_for_status().json()["dbSizeInUse"])
        return dict(sizes)

    def memory(self, program: str) -> int:
        """Most bytes that a program has used."""
        status = Path(f"/proc/{self.started[program].pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024

    def _start(self) -> None:
        if CERTIFICATES.exists():
            raise SystemExit(f"{CERTIFICATES} is there: another training operator runs outside of containers")
        self.ports = dict(zip(("etcd", "peer", "api", "webhook"), _free_ports(4), strict=True))
        etcd = f"http://127.0.0.1:{self.ports['etcd']}"
        peer = f"http://127.0.0.1:{self.ports['peer']}"
        self._run(
            "etcd", f"--data-dir={self.folder}/etcd", f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync", "--quota-backend-bytes=8589934592",
        )  # fmt: skip
        key = self.folder / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = "".join(f'{client},{client},{client},"system:masters"\n' for client in CLIENTS)
        (self.folder / "tokens.csv").write_text(tokens)
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
        (self.folder / "audit.yaml").write_text(yaml.safe_dump({**policy, "rules": [{"level": "Metadata"}]}))
        self._run(
            "kube-apiserver", f"--etcd-servers={etcd}", "--bind-address=127.0.0.1",
            f"--secure-port={self.ports['api']}",
            f"--cert-dir={self.folder}", f"--token-auth-file={self.folder}/tokens.csv", "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16", f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}", "--service-account-issuer=https://simulated",
            f"--audit-policy-file={self.folder}/audit.yaml", f"--audit-log-path={self.folder}/audit.log",
            "--audit-log-maxsize=4000", "--audit-log-mode=blocking",
        )  # fmt: skip
        self._until("the API server", lambda: self.http().get("/readyz").status_code == 200)
        self._run(
            "kube-controller-manager", f"--kubeconfig={self.kubeconfig('controllers')}", "--secure-port=0",
            f"--service-account-private-key-file={key}", "--leader-elect=false",
            "--node-monitor-grace-period=24h",  # simulated nodes send no heartbeats
        )  # fmt: skip
        self._run(
            "kube-scheduler", f"--kubeconfig={self.kubeconfig('scheduler')}", "--secure-port=0", "--leader-elect=false"
        )
        self._run(
            "kwok", f"--kubeconfig={self.kubeconfig('kwok')}", f"--config={HERE / 'stages.yaml'}", "--manage-all-nodes",
            "--node-lease-duration-seconds=0", "--server-address=",
        )  # fmt: skip
        self._operator()

    def _operator(self) -> None:
        """With its certificate, but without its webhook: the API server could not reach it by its Service."""
        known = subprocess.run(["go", "mod", "download", "-json", OPERATOR], check=True, capture_output=True, text=True)
        upstream = Path(json.loads(known.stdout)["Dir"])
        self.kubectl("create", "namespace", "kubeflow")
        self.kubectl("create", "-f", str(upstream / "manifests/base/crds/kubeflow.org_pytorchjobs.yaml"))
        self.kubectl("-n", "kubeflow", "create", "secret", "generic", "training-operator-webhook-cert")
        never = {
            "name": "validator.pytorchjob.training-operator.kubeflow.org",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"service": {"name": "training-operator", "namespace": "kubeflow", "path": "/"}},
            "rules": [{"apiGroups": ["none"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["none"]}],
        }
        kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
        self.apply([{**kind, "metadata": {"name": WEBHOOKS}, "webhooks": [never]}])
        CERTIFICATES.mkdir(parents=True)
        self.certified = True
        self._run(
            "static/training-operator.v1", f"--kubeconfig={self.kubeconfig('operator')}", "--enable-scheme=pytorchjob",
            "--metrics-bind-address=0", "--health-probe-bind-address=0",
            f"--webhook-server-port={self.ports['webhook']}", *self.operator_flags,
        )  # fmt: skip
        secret = "/api/v1/namespaces/kubeflow/secrets/training-operator-webhook-cert"
        self._until("the operator's certificate", lambda: bool(self.http().get(secret).json().get("data")))
        for name, value in self.http().get(secret).json()["data"].items():
            (CERTIFICATES / name).write_bytes(base64.b64decode(value))
        log = self.folder / "training-operator.v1.log"
        self._until("the operator", lambda: "Starting workers" in log.read_text(), seconds=120)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> None:
        command = [str(TOOLS / "kubectl"), f"--kubeconfig={self.kubeconfig('watcher')}", *arguments]
        subprocess.run(command, input=stdin, text=True, check=True, stdout=subprocess.DEVNULL)

    def apply(self, objects: Sequence[dict[str, Any]]) -> None:
        self.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def _run(self, program: str, *arguments: str) -> None:
        if not (TOOLS / program).exists():
            raise SystemExit(f"{TOOLS / program} is missing: build it with tests/cluster/tools {TOOLS}")
        name = Path(program).name
        log = (self.folder / f"{name}.log").open("wb")
        environment = {**os.environ, "MY_POD_NAMESPACE": "kubeflow"}
        self.started[name] = subprocess.Popen(
            [str(TOOLS / program), *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment
        )

    def _until(self, what: str, test: Callable[[], bool], seconds: float = 60) -> None:
        patience = time.monotonic() + seconds
        while time.monotonic() < patience:
            try:
                if test():
                    return
            except httpx.TransportError:
                pass
            for name, process in self.started.items():
                if process.poll() is not None:
                    raise SystemExit(f"{name} has ended: {(self.folder / f'{name}.log').read_text()[-800:]}")
            time.sleep(0.3)
        raise SystemExit(f"not within {seconds:g} s: {what}")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
