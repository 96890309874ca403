"""A pipeline whose train step puts a real elastic PyTorchJob on the cluster, and whose benchmark measures its model.

Steps run in the real images by kfp.local's Docker runner, with the disk of the job at /rounds, as a token of a service
account that has manifests/pipelines and nothing else. One round goes through everything that may happen to a run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker.models.containers import Container

from caspi.pipeline.job import RUN
from caspi.records.record import read_record
from caspi.spec import load_round
from tests.cluster.jobs import NAME, ROUND, Setting, fill
from tests.cluster.kube import (
    CASPI,
    HOUSE,
    UID,
    Kube,
    environment,
    last_step,
    make_namespace,
    metric_steps,
    run,
    until,
)

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]
TRAIN, LAUNCHER = "localhost/caspi-train:latest", "localhost/caspi-launcher:latest"
"""As images/build names them on the machine that builds."""
STEPS = ("export", "audit", "gate", "train", "benchmark", "compare", "report", "free")
Row = list[tuple[str, str, str]]


@pytest.fixture(scope="module")
def runner(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kubeconfig of the steps: a token of a service account of another namespace, with the manifests' rights."""
    steps = make_namespace(f"{kube.namespace}-steps")
    steps.kubectl("create", "serviceaccount", "pipeline-runner")
    objects = list(yaml.safe_load_all(run("kubectl", "kustomize", HOUSE / "manifests/pipelines").stdout))
    rights = [one for one in objects if one["kind"] in ("Role", "RoleBinding")]
    assert len(rights) == 2
    for one in rights:
        one["metadata"]["namespace"] = kube.namespace
        for subject in one.get("subjects", []):
            subject["namespace"] = steps.namespace
    kube.apply(*rights)
    disks = [one for one in objects if one["kind"].startswith("Persistent")]
    for one in disks:
        one["metadata"].pop("namespace", None)
    steps.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(disks))

    config = yaml.safe_load(run("kubectl", "config", "view", "--raw", "--flatten", "--minify").stdout)
    config["users"] = [{**config["users"][0], "user": {"token": steps.kubectl("create", "token", "pipeline-runner")}}]
    path = tmp_path_factory.mktemp("kube") / "config"
    path.write_text(yaml.safe_dump(config))
    os.chown(path, UID, UID)
    path.parent.chmod(0o755)
    yield path
    run("kubectl", "delete", "namespace", steps.namespace, "--wait=false")


@dataclass
class Run:
    """A run of the pipeline: a process that can be killed, and the containers of its steps."""

    process: subprocess.Popen[str]
    label: str
    log: Path
    begun: float = field(default_factory=time.monotonic)

    def container(self, step: str) -> Container | None:
        found: list[Container] = docker.from_env().containers.list(filters={"label": f"caspi-test={self.label}"})
        return next((one for one in found if step in one.attrs["Config"]["Cmd"]), None)

    def kill_step(self, step: str) -> None:
        container = until(f"the container of {step}", lambda: self.container(step), 10)
        container.kill("SIGKILL")

    def ended(self, seconds: float = 240) -> list[tuple[str, int]]:
        """Exit codes of the steps, as they were started."""
        self.process.wait(seconds)
        return [(step, int(code)) for step, code in re.findall(r"^ENDED (\w+) (\d+)$", self.text, re.MULTILINE)]

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Pipeline:
    """The round, and where its pipeline runs."""

    setting: Setting
    folder: Path
    """Of the claim, on this machine."""
    kubeconfig: Path
    cluster: Path
    round: Path
    digest: str
    runs: list[Run] = field(default_factory=list)

    def start(self, retries: int = 0) -> Run:
        number = len(self.runs) + 1
        folder = self.setting.folder / f"run-{number}"
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
        label = f"{self.setting.kube.namespace}-{number}"
        given = {
            "folder": str(folder),
            "label": label,
            "retries": retries,
            "mounts": {str(self.folder): "/rounds", str(self.kubeconfig): "/kubeconfig"},
            "environment": {"KUBECONFIG": "/kubeconfig"},
            "arguments": {
                "round": self.round.read_text(),
                "cluster": self.cluster.read_text(),
                "digest": self.digest,
                "image": TRAIN,
                "launcher": LAUNCHER,
                "trainer": LAUNCHER,
                "train_by": "helm",
            },
        }
        file, log = folder.with_suffix(".json"), folder.with_suffix(".log")
        file.write_text(json.dumps(given))
        command = [sys.executable, "-m", "tests.cluster.pipeline_run", str(file)]
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment(), "DOCKER_HOST": os.environ["DOCKER_HOST"]},
                cwd=HOUSE,
                text=True,
            )
        self.runs.append(Run(process, label, log))
        return self.runs[-1]

    @property
    def round_dir(self) -> Path:
        return self.folder / f"{NAME}-{self.digest[:8]}"

    def job(self) -> dict[str, Any]:
        return self.setting.kube.get("pytorchjob", NAME)

    def uid(self) -> str:
        return str(self.job().get("metadata", {}).get("uid", ""))

    def owner(self) -> str:
        return str(self.job()["metadata"]["labels"].get(RUN, ""))

    def trains(self, going: Run, step: int, seconds: float = 240) -> None:
        """Wait until the job has taken this step; the run must not have ended meanwhile."""

        def reached() -> bool:
            assert going.process.poll() is None, going.text[-6000:]
            return last_step(self.round_dir) >= step

        until(f"step {step} of {going.label}", reached, seconds, self.setting.kube)


@pytest.fixture(scope="module")
def pipeline(setting: Setting, engine: None, runner: Path) -> Iterator[Pipeline]:
    folder = fill(setting, "rounds")
    cluster = setting.cluster_file("rounds", nodes=2)
    file = setting.folder / ROUND.name
    file.write_text(ROUND.read_text().replace("epochs: 3", "epochs: 10"))  # there is much to do in the meantime
    made = Pipeline(setting, folder, runner, cluster, file, load_round(file).digest)
    yield made
    for one in made.runs:
        if one.process.poll() is None:
            one.process.kill()
        for container in docker.from_env().containers.list(all=True, filters={"label": f"caspi-test={one.label}"}):
            container.remove(force=True)


def test_a_round_survives_what_may_happen_to_its_pipeline(pipeline: Pipeline, measured: Row) -> None:
    kube = pipeline.setting.kube

    # The train step dies, but another run has adopted the job meanwhile: it stays.
    first = pipeline.start()
    pipeline.trains(first, 1, 400)
    uid, owner = pipeline.uid(), pipeline.owner()
    assert {kube.node_of(pod["metadata"]["name"]) for pod in kube.workers(NAME)} == {"node-0", "node-1"}
    kube.kubectl("label", "pytorchjob", NAME, f"{RUN}=another-run", "--overwrite")
    first.kill_step("train")

    # Run again while it trains: this run has the job now. Its train step dies: the run takes the job off.
    second = pipeline.start()
    until("the first run leaves the job alone", lambda: ": it stays" in first.text, 60, kube)
    until("the second run has the job", lambda: pipeline.owner() not in ("another-run", owner), 120, kube)
    adopted = time.monotonic() - second.begun
    assert pipeline.uid() == uid
    until("a log line of a worker", lambda: "worker-0 | " in second.text, 30, kube)
    stood = last_step(pipeline.round_dir)
    second.kill_step("train")
    ended = first.ended()
    assert ended[-2:] == [("train", 137), ("free", 0)], first.text[-6000:]
    ended = second.ended()
    assert ended[-2:] == [("train", 137), ("free", 0)], second.text[-6000:]
    assert "its GPUs are free" in second.text
    assert pipeline.uid() == ""
    left = kube.kubectl("get", "pods,jobs,services,configmaps", "-o", "name").split()
    assert [one for one in left if "kube-root-ca" not in one] == []
    assert stood >= 6 and (pipeline.round_dir / "train/latest").is_file()
    assert not (pipeline.round_dir / "train/record.json").is_file()
    measured.append(("pipeline: run again until the job is adopted", f"{adopted:.1f} s", "4 containers"))

    # Run again: a job that goes on from the last checkpoint. The step that put it there dies, is tried again, and
    # adopts it; from there to the report.
    third = pipeline.start(retries=1)
    until("the third run has a job", lambda: pipeline.uid() and pipeline.owner(), 120, kube)
    uid, owner = pipeline.uid(), pipeline.owner()
    third.kill_step("train")
    ended = third.ended(500)
    good = [(step, 0) for step in STEPS]
    assert ended == [*good[:3], ("train", 137), *good[3:]], third.text[-6000:]
    assert f"{NAME}: there already" in third.text
    assert (pipeline.uid(), pipeline.owner()) == (uid, owner), "nothing was started twice"
    seconds = time.monotonic() - third.begun
    assert kube.condition("pytorchjob", NAME) == "Succeeded"
    assert [one["metadata"]["name"] for one in kube.items("secrets", "owner=helm")] == [f"sh.helm.release.v1.{NAME}.v1"]
    measured.append(("pipeline: from a checkpoint to the report", f"{seconds:.1f} s", f"PyTorchJob {uid}"))
    curve = metric_steps(pipeline.round_dir)
    assert sorted(curve) == list(range(1, max(curve) + 1)) and max(curve) > stood, "no step is missing"

    # Run again when it is finished: nothing happens.
    before = {path: path.stat().st_mtime_ns for path in pipeline.round_dir.glob("*/record.json")}
    version = pipeline.job()["metadata"]["resourceVersion"]
    fourth = pipeline.start()
    assert fourth.ended() == good, fourth.text[-6000:]
    assert (pipeline.uid(), pipeline.job()["metadata"]["resourceVersion"]) == (uid, version)
    assert {path: path.stat().st_mtime_ns for path in pipeline.round_dir.glob("*/record.json")} == before
    measured.append(("pipeline: a finished round", f"{time.monotonic() - fourth.begun:.1f} s", "8 containers, no job"))


def test_the_benchmark_of_the_pipeline_is_that_of_the_model(pipeline: Pipeline, tmp_path: Path) -> None:
    """Measured once more, on this machine, without containers: the same record, to the last word."""
    copy = tmp_path / pipeline.round_dir.name
    shutil.copytree(pipeline.round_dir, copy)
    theirs = read_record(copy / "benchmark/record.json")
    (copy / "benchmark/record.json").unlink()
    cluster = yaml.safe_load((copy / "cluster.yaml").read_text())
    assert cluster["kubernetes"]["namespace"] == pipeline.setting.kube.namespace, "pods do not forget it"
    cluster["data_root"] = str(pipeline.folder / "data/rounds")
    (copy / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    run(CASPI, "stage", "benchmark", "--round-dir", copy)
    mine = read_record(copy / "benchmark/record.json")
    assert mine and theirs and mine.results == theirs.results
    assert mine.digest == theirs.digest
    wer = [score["wer"]["value"] for score in mine.results["scores"]]
    assert wer and all(value > 0 for value in wer)


def test_a_pipeline_may_not_more_than_it_has_to(pipeline: Pipeline) -> None:
    kube, token = pipeline.setting.kube, f"--kubeconfig={pipeline.kubeconfig}"
    asked = {
        "create pytorchjobs": "yes",
        "create pods": "no",
        "create pods/exec": "no",
        "create jobs": "no",
        "create roles": "no",
        "watch secrets": "no",
        "delete persistentvolumeclaims": "no",
    }
    found = {
        one: run("kubectl", token, "-n", kube.namespace, "auth", "can-i", *one.split(), check=False).stdout.strip()
        for one in asked
    }
    assert found == asked
    elsewhere = run("kubectl", token, "-n", "default", "auth", "can-i", "get", "secrets", check=False)
    assert elsewhere.stdout.strip() == "no"
