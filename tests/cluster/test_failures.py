"""What goes wrong on a cluster: each has its line in `caspi status`, with the way out, and loses no checkpoint."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.jobs import NAME, POD, ROUND, Job, Setting, fill, submit
from tests.cluster.kube import CASPI, Kube, last_step, metric_steps, remove_folder, run, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
Row = list[tuple[str, str, str]]


@pytest.fixture(autouse=True)
def _cancelled(setting: Setting) -> Iterator[None]:
    """A test that fails leaves nothing for the next one to stumble over."""
    yield
    run(CASPI, "cancel", NAME, "--namespace", setting.kube.namespace, check=False)


@pytest.fixture(scope="module")
def prepared(setting: Setting) -> Path:
    """A round directory that is exported and audited: what is tested here comes after."""
    job = submit(setting, setting.cluster_file("prepared"), fill(setting, "prepared"))
    folder = job.round_dir
    until("prepared", lambda: (folder / "audit/record.json").exists(), 180, setting.kube)
    job.cancel()
    return folder


def test_an_image_that_cannot_be_pulled(setting: Setting, prepared: Path, measured: Row) -> None:
    images = {"train": setting.train_image[:-64] + "0" * 64, "launcher": setting.launcher_image}
    cluster = setting.cluster_file("pull", nodes=1, images=images)
    job = submit(setting, cluster, fill(setting, "pull", prepared))
    note(measured, "image cannot be pulled", job.says("worker-0", "image", "0000"))
    job.cancel()


def test_a_secret_is_missing(setting: Setting, prepared: Path, measured: Row) -> None:
    cluster = setting.cluster_file("secret", nodes=1, secrets={"wandb": "nowhere/key"})
    job = submit(setting, cluster, fill(setting, "secret", prepared))
    note(measured, "secret missing", job.says("worker-0", "nowhere", "kubectl create secret"))
    setting.kube.kubectl("create", "secret", "generic", "nowhere", "--from-literal=key=x")
    job.reaches(1)
    job.cancel()


def test_the_quota_is_exceeded(setting: Setting, prepared: Path, measured: Row) -> None:
    setting.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "small"},
            "spec": {"hard": {"limits.memory": "10Gi"}},
        }
    )
    cluster = setting.cluster_file("quota", nodes=1, pod={**POD, "memory": "11GiB"})
    try:
        job = submit(setting, cluster, fill(setting, "quota", prepared))
        note(measured, "quota exceeded", job.says("quota", "small", "limits.memory"))
    finally:
        setting.kube.kubectl("delete", "resourcequota", "small")
    job.cancel()


def test_a_webhook_refuses(setting: Setting, prepared: Path, measured: Row, tmp_path: Path) -> None:
    with refusing_webhook(setting.kube, "no GPUs on Fridays", tmp_path):
        job = submit(setting, setting.cluster_file("webhook", nodes=1), fill(setting, "webhook", prepared))
        note(measured, "webhook refuses", job.says("no GPUs on Fridays"))
    job.reaches(1)  # by itself, when the webhook is gone
    job.cancel()


def test_the_claim_is_full(setting: Setting, prepared: Path, measured: Row) -> None:
    folder = fill(setting, "full", prepared, megabytes=64)
    job = submit(setting, setting.cluster_file("full", nodes=1), folder)
    job.reaches(7)
    (folder / "somebody-else").write_bytes(b"x" * (free(folder) - (1 << 20)))
    note(measured, "claim full", job.says("no space left", "/rounds", "step"))
    assert setting.kube.finished(NAME) == "Failed"
    (folder / "somebody-else").unlink()
    goes_on(job, measured, "claim full, then enlarged")
    job.cancel()
    remove_folder(folder)


def test_the_gate_asks_for_a_signature(setting: Setting, measured: Row, tmp_path: Path) -> None:
    """CAUTION: nothing is trained until somebody signs this very audit; the line has the command."""
    doubtful = tmp_path / "elastic.yaml"
    text = ROUND.read_text()
    lenient = "proceed: {low_quality: 15%, any_domain: 25%}"
    assert lenient in text
    doubtful.write_text(text.replace(lenient, "proceed: {low_quality: 5%, any_domain: 5%}"))
    folder, cluster = fill(setting, "gate"), setting.cluster_file("gate", nodes=1)
    job = submit(setting, cluster, folder, file=doubtful)
    line = job.says("CAUTION", "--approve-audit")
    note(measured, "gate says CAUTION", line)
    assert setting.kube.condition("pytorchjob", NAME) == "Suspended" and not setting.kube.workers(NAME)
    audit = line.split("--approve-audit")[1].split()[0].strip("`")
    signed = ["--approve-by", "Dana Levi", "--approve-reason", "it is a test", "--approve-audit", audit]
    submit(setting, cluster, folder, *signed, file=doubtful)
    job.reaches(1)
    assert json.loads((job.round_dir / "audit/approval.json").read_text())["by"] == "Dana Levi"
    job.cancel()


def test_out_of_memory(setting: Setting, prepared: Path, measured: Row) -> None:
    """A job in the middle goes on with too little memory; then with enough."""
    folder = fill(setting, "memory", prepared)
    job = submit(setting, setting.cluster_file("memory", nodes=1), folder)
    job.reaches(12)
    job.cancel()
    small = submit(setting, setting.cluster_file("memory", nodes=1, pod={**POD, "memory": "300MiB"}), folder)
    note(measured, "out of memory", small.says("out of memory", "300", seconds=300))
    assert setting.kube.finished(NAME) == "Failed"
    again = submit(setting, setting.cluster_file("memory", nodes=1), folder)
    goes_on(again, measured, "out of memory, then more of it", submitted=True)
    again.cancel()


def goes_on(job: Job, measured: Row, what: str, submitted: bool = False) -> None:
    """The same command again goes on at a checkpoint, and ends."""
    before, folder = last_step(job.round_dir), job.round_dir
    if not submitted:
        job = submit(job.setting, job.cluster, job.folder)
    assert job.setting.kube.finished(NAME) == "Succeeded", job.setting.kube.explain(NAME)
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert sorted(metric_steps(folder)) == list(range(1, max(steps) + 1)) and before >= 5
    record = json.loads((folder / "train/record.json").read_text())
    assert record["status"] == "succeeded"
    log = (folder / "train/logs" / f"{NAME}-worker-0.log").read_text(errors="replace")
    first = [line for line in log.splitlines() if " of " in line and line.strip().startswith("step ")]
    assert first, "heartbeats"
    measured.append((what, "ends", f"went on after step {before - before % 5} or so"))


def note(measured: Row, fault: str, line: str) -> None:
    measured.append((fault, "status says", line.strip()))


@contextmanager
def refusing_webhook(kube: Kube, reason: str, folder: Path) -> Iterator[None]:
    """A real admission webhook on this machine that refuses every worker pod of the namespace."""
    address = run("kubectl", "get", "node", "node-0", "-o", "jsonpath={.status.addresses[0].address}").stdout
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", "/CN=webhook", "-addext", f"subjectAltName=IP:{address}"]
    pair = ["-keyout", str(key), "-out", str(certificate), "-days", "1"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *pair, *subject], check=True)

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {"uid": review["request"]["uid"], "allowed": False, "status": {"message": reason}}
            body = json.dumps({**review, "response": answer}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer((address, 0), Refuse)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = {
        "name": "refuse.test.caspi.dev",
        "clientConfig": {
            "url": f"https://{address}:{server.server_port}/",
            "caBundle": subprocess.check_output(["base64", "-w0", certificate], text=True),
        },
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": kube.namespace}},
        "objectSelector": {"matchExpressions": [{"key": "training.kubeflow.org/job-name", "operator": "Exists"}]},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    kube.apply({**kind, "metadata": {"name": "caspi-test-refuses"}, "webhooks": [hook]})
    try:
        yield
    finally:
        run("kubectl", "delete", "validatingwebhookconfiguration", "caspi-test-refuses")
        server.shutdown()


def free(folder: Path) -> int:
    found = subprocess.check_output(["df", "--output=avail", "-B1", folder], text=True)
    return int(found.split()[-1])
