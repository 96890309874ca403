"""Locks with the real Helm, the real chart and a real registry: the same objects from the same commit, for ever."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from caspi.locks.model import lock_text, plain, read_lock
from caspi.locks.rendering import rendered
from tests.charts.rendering import TOOLS, helm
from tests.command import caspi

pytestmark = pytest.mark.cluster

HOUSE = Path(__file__).parents[2]
DIGEST = "sha256:" + "1" * 64
CLUSTER = {
    "memory": "2GiB",
    "data_root": "/rounds/data",
    "kubernetes": {
        "namespace": "asr",
        "storage": {"claim": "rounds"},
        "images": {name: f"registry.example.com/asr/caspi-{name}@{DIGEST}" for name in ("train", "launcher")},
    },
}


def git(top: Path, *arguments: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", top, *who, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(top: Path) -> str:
    git(top, "add", "-A")
    git(top, "commit", "-qm", "Something")
    return git(top, "rev-parse", "HEAD")


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the rounds, the data and the chart of this one."""
    monkeypatch.setenv("HELM", shutil.which("helm") or str(TOOLS / "helm"))
    top = tmp_path / "repository"
    for folder in ("charts/caspi-train", "demo/crowd", "demo/studio", "demo/test"):
        shutil.copytree(HOUSE / folder, top / folder)
    (top / "rounds").mkdir()
    for name in ("demo-r1", "demo-r2"):
        shutil.copy(HOUSE / f"rounds/{name}.yaml", top / "rounds")
    (top / "clusters").mkdir()
    (top / "clusters/c.yaml").write_text(yaml.safe_dump(CLUSTER))
    git(top, "init", "-q", "-b", "main")
    commit(top)
    monkeypatch.chdir(top)
    return top


def locked(name: str, *more: str) -> dict[str, Any]:
    done = caspi("lock", f"rounds/{name}.yaml", "-c", "clusters/c.yaml", "--data-root", "rounds", *more)
    assert done.code == 0, done.err
    return plain(read_lock(Path(f"rounds/{name}.lock.yaml")))


def tampered(name: str, lock: dict[str, Any]) -> list[str]:
    Path(f"rounds/{name}.lock.yaml").write_text(lock_text(lock), encoding="utf-8")
    done = caspi("verify-locks")
    assert done.code == 2
    return done.err.splitlines()


def test_the_chart_renders_to_the_same_from_its_commit(top: Path) -> None:
    for name in ("demo-r1", "demo-r2"):
        lock = locked(name)
        again = [rendered(top / "charts/caspi-train", name, "asr", lock["values"]) for _ in range(3)]
        assert set(again) == {lock["rendered"]}
        assert rendered(top / "charts/caspi-train", name, "prod", lock["values"]) != lock["rendered"]
    commit(top)
    template = top / "charts/caspi-train/templates/pytorchjob.yaml"
    template.write_text(template.read_text() + "\n# another\n")
    chart = top / "charts/caspi-train/Chart.yaml"
    chart.write_text(chart.read_text().replace("version: 0.1.0", "version: 0.2.0"))
    commit(top)
    lock = yaml.safe_load((top / "rounds/demo-r1.lock.yaml").read_text())
    assert rendered(top / "charts/caspi-train", "demo-r1", "asr", lock["values"]) != lock["rendered"]
    done = caspi("verify-locks", "--base", "HEAD")
    assert (done.code, done.out) == (0, "2 locks: all in order\n"), done.err


def test_tampering_is_found_by_rendering(top: Path) -> None:
    def lock() -> dict[str, Any]:
        Path("rounds/demo-r1.lock.yaml").unlink(missing_ok=True)
        return locked("demo-r1")

    changed = lock()
    changed["values"]["workers"]["resources"]["memory"] = "64Gi"
    assert [line for line in tampered("demo-r1", changed) if "and the chart makes" in line]
    changed = lock()
    changed["rendered"] = "0" * 64
    assert [
        line for line in tampered("demo-r1", changed) if line.startswith("rounds/demo-r1.lock.yaml: rendered is 000")
    ]
    changed = lock()
    changed["values"]["workers"]["gpus"] = {"count": "eight"}
    assert [line for line in tampered("demo-r1", changed) if "the chart does not render: Error" in line]
    changed = lock()
    changed["digest"] = "0" * 64
    assert len(tampered("demo-r1", changed)) == 3
    lock()
    Path("rounds/demo-r1.lock.yaml").rename("rounds/mine.lock.yaml")
    assert "its file is called demo-r1.lock.yaml" in caspi("verify-locks").err


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The registry program of the local cluster, on a port of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "blobs")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(config))
    with (tmp_path / "registry.log").open("w") as log:
        running = subprocess.Popen([program, "serve", tmp_path / "registry.yaml"], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def pushed(registry: str, chart: Path, to: Path) -> str:
    """The reference of a chart that was packed and pushed."""
    assert helm("package", chart, "--destination", to).returncode == 0
    (packed,) = to.glob("*.tgz")
    said = helm("push", packed, f"oci://{registry}/charts")
    found = re.search(r"Digest: (sha256:[0-9a-f]{64})", said.stdout + said.stderr)
    assert found, said.stderr
    return f"oci://{registry}/charts/caspi-train@{found[1]}"


def test_the_chart_in_a_registry_is_the_same(top: Path, registry: str, tmp_path: Path) -> None:
    good = pushed(registry, top / "charts/caspi-train", tmp_path / "good")
    shutil.copytree(top / "charts/caspi-train", tmp_path / "caspi-train")
    template = tmp_path / "caspi-train/templates/pytorchjob.yaml"
    template.write_text(template.read_text().replace("kind: PyTorchJob", "kind: PyTorchJob\n# x", 1))
    round_file = tmp_path / "caspi-train/templates/round.yaml"
    round_file.write_text(round_file.read_text().replace("kind: ConfigMap", "kind: ConfigMap\nimmutable: false", 1))
    bad = pushed(registry, tmp_path / "caspi-train", tmp_path / "bad")
    command = ["lock", "rounds/demo-r1.yaml", "-c", "clusters/c.yaml", "--data-root", "rounds", "--chart"]
    done = caspi(*command, bad)
    assert (done.code, "makes other objects than charts/caspi-train of this commit" in done.err) == (2, True), done.err
    done = caspi(*command, f"oci://{registry}/charts/caspi-train@sha256:{'0' * 64}")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--chart oci://" in done.err
    lock = locked("demo-r1", "--chart", good)
    assert f"{lock['chart']['oci']['repository']}@{lock['chart']['oci']['digest']}" == good
    documents = list(yaml.safe_load_all(caspi("flux", "rounds/demo-r1.lock.yaml").out))
    reference = f"{documents[0]['spec']['url']}@{documents[0]['spec']['ref']['digest']}"
    release = documents[1]["spec"]
    assert (
        rendered(reference, release["releaseName"], documents[1]["metadata"]["namespace"], release["values"])
        == (lock["rendered"])
    ), "what Flux is told to install is what was locked"
