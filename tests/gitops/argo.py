"""A real Argo CD, and the git repository that it reads: pushed to, watched, synced, restarted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.kube import CASPI, HOUSE, Kube, environment, run, until

HERE = Path(__file__).parent
MANIFESTS = HOUSE / "manifests/gitops/argocd"
AS_PODS_SEE = "file:///srv/git/rounds.git"
ARGO = Kube("argocd")
Health = tuple[str, str]
"""What Argo CD says of an object, and why."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A clone whose pushes Argo CD sees."""

    folder: Path

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def merge(self, what: str) -> str:
        """Commit everything and push it to main: what a merge is to a cluster. The commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", what)
        self.git("push", "--quiet", "origin", "HEAD:main")
        return self.git("rev-parse", "HEAD")

    def lock(self, name: str, data_root: Path) -> Path:
        """`caspi lock`, as a person runs it."""
        self.caspi("lock", f"rounds/{name}.yaml", "--cluster", "clusters/test.yaml", "--data-root", str(data_root))
        return self.folder / f"rounds/{name}.lock.yaml"

    def caspi(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(CASPI), *arguments], cwd=self.folder, env=environment(), capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"caspi {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done


def make_repository(bare: Path, folder: Path) -> Repository:
    """An empty repository, and a clone of it with this checkout's charts."""
    shutil.rmtree(bare, ignore_errors=True)
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
    subprocess.run(["git", "clone", "--quiet", str(bare), str(folder)], check=True, capture_output=True)
    made = Repository(folder)
    made.git("config", "user.name", "Dana Levi")
    made.git("config", "user.email", "dana@example.com")
    for chart in ("caspi-train",):
        shutil.copytree(HOUSE / "charts" / chart, folder / "charts" / chart)
    (folder / "rounds").mkdir()
    (folder / "clusters").mkdir()
    return made


def apply_manifests(namespace: str, folder: Path) -> None:
    """manifests/gitops/argocd with its two lines changed, and gates that fit on small nodes, as the page says."""
    ours = folder / "argocd"
    shutil.copytree(MANIFESTS, ours)
    settings = yaml.safe_load((ours / "settings.yaml").read_text())
    settings["data"] = {"repository": AS_PODS_SEE, "namespace": namespace}
    (ours / "settings.yaml").write_text(yaml.safe_dump(settings))
    small = {"preparation.resources.cpu": "500m", "preparation.resources.memory": "2Gi"}
    parameters = [{"name": name, "value": value} for name, value in small.items()]
    patch = [{"op": "add", "path": "/spec/template/spec/source/helm/parameters", "value": parameters}]
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["argocd"],
        "patches": [{"target": {"kind": "ApplicationSet"}, "patch": json.dumps(patch)}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    run("kubectl", "apply", "--server-side", "--field-manager=caspi", "-k", folder)


def forget_rounds() -> None:
    """What tests before this one left in Argo CD; nothing of what the Applications made."""
    for kind in ("applicationset", "application"):
        ARGO.kubectl("delete", f"{kind}s.argoproj.io", "--all", "--wait=true", check=False)


def application(name: str) -> dict[str, Any]:
    return ARGO.get("applications.argoproj.io", name)


def health(name: str) -> str:
    return str(application(name).get("status", {}).get("health", {}).get("status", ""))


def resource_health(app: dict[str, Any], kind: str, name: str | None = None) -> Health:
    """Of an object of an Application."""
    for one in app.get("status", {}).get("resources", []):
        if one["kind"] == kind and name in (None, one["name"]):
            found = one.get("health", {})
            return str(found.get("status", "")), str(found.get("message", ""))
    return "", ""


def sync_status(name: str, kind: str | None = None) -> str:
    """Synced or OutOfSync: of an Application, or of its object of a kind."""
    status = application(name).get("status", {})
    if kind is None:
        return str(status.get("sync", {}).get("status", ""))
    return next((str(one.get("status", "")) for one in status.get("resources", []) if one["kind"] == kind), "")


def look_at_git() -> None:
    """Ask the ApplicationSet to read the repository now."""
    ARGO.kubectl("annotate", "applicationset", "caspi-rounds", "argocd.argoproj.io/application-set-refresh=true")
    until(
        "the ApplicationSet has read git", lambda: not _annotated("applicationset", "caspi-rounds", "set-refresh"), 90
    )


def refresh(name: str) -> None:
    """A hard refresh: rendered anew, no cache."""
    ARGO.kubectl("annotate", "application", name, "argocd.argoproj.io/refresh=hard", "--overwrite")
    until(f"{name} is refreshed", lambda: not _annotated("application", name, "argocd.argoproj.io/refresh"), 90)


def sync(name: str, options: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    """What a person's sync asks of the controller: with the options of the Application unless others are given.

    Returns the state of the operation when it has ended.
    """
    app = application(name)
    own = app["spec"]["syncPolicy"]["syncOptions"] if options is None else list(options)
    before = app["status"].get("operationState", {}).get("startedAt")
    operation = {"initiatedBy": {"username": "dana"}, "sync": {"syncOptions": own, **more}}
    time.sleep(max(0.0, 1.1 - (time.time() - _stamp(before))))  # its stamps are whole seconds
    ARGO.kubectl("patch", "application", name, "--type=merge", "-p", json.dumps({"operation": operation}))

    def ended() -> dict[str, Any] | None:
        state = application(name)["status"].get("operationState", {})
        done = state.get("startedAt") != before and state.get("phase") in ("Succeeded", "Failed", "Error")
        return state if done else None

    return until(f"the sync of {name} has ended", ended, 90)


def restart() -> None:
    """Every pod of Argo CD at once, redis with its caches too."""
    before = {pod["metadata"]["uid"] for pod in ARGO.items("pods")}
    ARGO.kubectl("delete", "pods", "--all", "--wait=false", "--grace-period=1")
    until("the old pods are gone", lambda: not before & {pod["metadata"]["uid"] for pod in ARGO.items("pods")}, 90)
    ARGO.kubectl("rollout", "status", "deployment,statefulset", "--timeout=120s")


@dataclass(slots=True)
class Watch:
    """Every version of some objects, from the moment it is made."""

    path: Path
    process: subprocess.Popen[bytes]

    def seen(self) -> Iterator[dict[str, Any]]:
        text, decoder, at = self.path.read_text(), json.JSONDecoder(), 0
        while True:
            while at < len(text) and text[at].isspace():
                at += 1
            try:
                value, at = decoder.raw_decode(text, at)
            except ValueError:
                return  # the last one is being written
            yield value

    def of(self, name: str) -> list[dict[str, Any]]:
        return [one for one in self.seen() if one["metadata"]["name"] == name]


def watch(kube: Kube, kind: str, path: Path) -> Watch:
    command = ["kubectl", "-n", kube.namespace, "get", kind, "--watch", "-o", "json"]
    with path.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL, env=dict(environment()))
    return Watch(path, process)


def explain(name: str, kube: Kube) -> str:
    """Everything that tells why an Application is as it is."""
    app = application(name)
    status = {key: value for key, value in app.get("status", {}).items() if key not in ("history", "reconciledAt")}
    parts = [yaml.safe_dump(status), kube.explain(name)]
    for service in ("application-controller", "applicationset-controller", "repo-server"):
        selector = f"app.kubernetes.io/name=argocd-{service}"
        said = ARGO.kubectl("logs", "-l", selector, "--tail=40", check=False)
        parts.append(f"--- {service}\n" + "\n".join(line for line in said.splitlines() if "level=info" not in line))
    return "\n".join(parts)


def argocd(*arguments: str | Path) -> str:
    """The program, as a person runs it."""
    done = run("argocd", *arguments)
    return str(done.stdout)


def caspi_status(name: str, kube: Kube) -> str:
    """What the health message of a failed job sends people to."""
    return str(run(CASPI, "status", name, "--to", "helm", "--namespace", kube.namespace, check=False).stdout)


def _annotated(kind: str, name: str, key: str) -> bool:
    found = ARGO.get(f"{kind}s.argoproj.io", name).get("metadata", {}).get("annotations") or {}
    return any(key in one for one in found)


def _stamp(text: str | None) -> float:
    if not text:
        return 0.0
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone


def keep() -> bool:
    return bool(os.environ.get("KEEP"))
