"""A cluster for tests: kubectl and helm, folders of this machine as claims, faults, and waiting with a reason."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")

HOUSE = Path(__file__).parents[2]
HERE = Path(__file__).parent
HOME = Path(os.environ.get("CASPI_CLUSTER_HOME", Path.home() / ".cache/caspi/cluster"))
CASPI = HOUSE / ".venv/bin/caspi"
UID = 10001
"""Of the images' user."""
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}


@functools.cache
def environment() -> Mapping[str, str]:
    """With the KUBECONFIG and the programs of the cluster that `make cluster-up` started."""
    script = f'eval "$({HERE}/env)" && env -0'
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"no cluster: {found.stderr.strip()}; start one with `make cluster-up`"
    variables = dict(entry.split("=", 1) for entry in found.stdout.split("\0") if "=" in entry)
    return {**variables, "PATH": f"{CASPI.parent}:{variables['PATH']}"}


def run(*command: str | Path, stdin: str | None = None, check: bool = True, seconds: float = 300) -> Any:
    """A program with the cluster's environment. What it said is in the assertion when it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=seconds,
        cwd=HOUSE,
    )
    assert not check or done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done


@dataclass(frozen=True, slots=True)
class Kube:
    """One namespace of the cluster."""

    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return str(run("kubectl", "-n", self.namespace, *arguments, stdin=stdin, check=check).stdout)

    def helm(self, *arguments: str | Path, stdin: str | None = None, check: bool = True) -> Any:
        return run("helm", "-n", self.namespace, *arguments, stdin=stdin, check=check)

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def get(self, kind: str, name: str = "", selector: str = "") -> dict[str, Any]:
        """An object, or with a selector (or nothing) a list's `items`; {} when it is not there."""
        arguments = ["get", kind, *([name] if name else []), *(["-l", selector] if selector else []), "-o", "json"]
        text = self.kubectl(*arguments, "--ignore-not-found")
        return json.loads(text) if text.strip() else {}

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        return list(self.get(kind, selector=selector).get("items", []))

    def workers(self, name: str) -> list[dict[str, Any]]:
        return self.items("pods", f"training.kubeflow.org/job-name={name}")

    def node_of(self, pod: str) -> str:
        return str(self.get("pod", pod).get("spec", {}).get("nodeName", ""))

    def condition(self, kind: str, name: str) -> str:
        """The newest condition of a job that is true: Created, Running, Restarting, Suspended, Succeeded, Failed."""
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        true = [one["type"] for one in conditions if one["status"] == "True"]
        for last in ("Failed", "Succeeded", "Complete"):
            if last in true:
                return last
        return true[-1] if true else ""

    def explain(self, name: str) -> str:
        """Everything that tells why something did not happen."""
        parts = [
            self.kubectl("get", "pytorchjobs,pods,jobs", "-o", "wide", check=False),
            self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-4000:],
        ]
        for pod in self.items("pods"):
            podname = pod["metadata"]["name"]
            parts.append(
                f"--- {podname}\n" + self.kubectl("logs", podname, "--all-containers", "--tail=15", check=False)
            )
        return "\n".join([name, *parts])

    def finished(self, name: str, seconds: float = 240) -> str:
        """Wait until the job has ended; Succeeded or Failed."""

        def ended() -> str | None:
            found = self.condition("pytorchjob", name)
            return found if found in ("Succeeded", "Failed") else None

        return until(f"{name} has ended", ended, seconds, self, pause=1.5)


def until(what: str, test: Callable[[], T | None], seconds: float, kube: Kube | None = None, pause: float = 0.3) -> T:
    """Ask again until it is true; the assertion says what was waited for, and what the namespace looks like.

    The longer the `pause`, the more of the processors is left to what is waited for.
    """
    patience = time.monotonic() + seconds
    while time.monotonic() < patience:
        found = test()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError(f"not within {seconds:g} s: {what}\n{kube.explain(what) if kube else ''}")


def make_namespace(name: str) -> Kube:
    """A new, empty namespace in which the restricted profile is enforced."""
    run("kubectl", "delete", "namespace", name, "--ignore-not-found", "--wait=true")
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    run("kubectl", "apply", "-f", "-", stdin=yaml.safe_dump(made))
    return Kube(name)


def make_claim(kube: Kube, name: str, megabytes: int | None = None) -> Path:
    """A claim that every node mounts; returns its folder on this machine. With a size it is a disk that gets full."""
    folder = HOME / "claims" / kube.namespace / name
    remove_folder(folder)
    folder.mkdir(parents=True)
    if megabytes:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "caspi-test", folder], check=True)
    os.chown(folder, UID, UID)
    volume = f"{kube.namespace}-{name}"
    run("kubectl", "delete", "pv", volume, "--ignore-not-found", "--wait=false")
    access, size = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}, {"storage": "10Gi"}
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **access,
                "capacity": size,
                "hostPath": {"path": str(folder)},
                "claimRef": {"namespace": kube.namespace, "name": name},
                "persistentVolumeReclaimPolicy": "Retain",
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {**access, "resources": {"requests": size}, "volumeName": volume},
        },
    )
    # a pod that is made before it is bound may wait for minutes in the scheduler's back row
    kube.kubectl("wait", "--for=jsonpath={.status.phase}=Bound", f"pvc/{name}", "--timeout=60s")
    return folder


def remove_folder(folder: Path) -> None:
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def give(folder: Path, *sources: tuple[Path, str]) -> None:
    """Copy folders into a claim, for the images' user."""
    for source, name in sources:
        shutil.copytree(source, folder / name, dirs_exist_ok=True)
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, UID, UID)


def processes_of(pod: str, program: str) -> list[int]:
    """Pids on this machine of a pod's processes whose command line contains `program`; oldest first."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if f"POD_NAME={pod}".encode() in variables and program in command:
            found.append(int(entry.name))
    return sorted(found)


def metric_steps(round_dir: Path) -> dict[int, float]:
    """Step -> loss, as metrics.jsonl has it; the last line of a step counts."""
    path, found = round_dir / "train/metrics.jsonl", {}
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("kind") == "train":
            found[int(line["step"])] = float(line["loss"])
    return found


def last_step(round_dir: Path) -> int:
    return max(metric_steps(round_dir), default=0)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
