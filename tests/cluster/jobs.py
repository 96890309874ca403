"""The tiny round as a job on the cluster: submitted, followed, cancelled, as its users do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.kube import CASPI, HERE, HOUSE, Kube, give, last_step, make_claim, run, until

ROUND = HERE / "rounds/elastic.yaml"
NAME = "elastic"
POD = {"cpu": 1, "memory": "2GiB", "shm": "64MiB"}
SMALL = {
    "preparation": {"resources": {"cpu": "500m", "memory": "2Gi"}},
    "retries": {"restarts": 1, "starts": 2},
}
"""For nodes with two cores, and no patience with what fails every time."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the jobs of a test file share."""

    kube: Kube
    train_image: str
    launcher_image: str
    folder: Path

    def cluster_file(self, claim: str, nodes: int = 3, **kubernetes: Any) -> Path:
        path = self.folder / f"{claim}.yaml"
        images = {"train": self.train_image, "launcher": self.launcher_image}
        own = {"namespace": self.kube.namespace, "storage": {"claim": claim}, "images": images, "pod": POD}
        machine = {"nodes": nodes, "memory": "1GiB", "hang_timeout": 60, "data_root": "/rounds/data/rounds"}
        path.write_text(yaml.safe_dump({**machine, "kubernetes": own | kubernetes}))
        return path


@dataclass(slots=True)
class Job:
    """A job that was submitted."""

    setting: Setting
    cluster: Path
    folder: Path
    """Of its claim, on this machine."""
    submitted: float

    @property
    def round_dir(self) -> Path:
        kube = self.setting.kube
        return until("a round directory", lambda: next(self.folder.glob(f"{NAME}-????????"), None), 420, kube)

    def reaches(self, step: int, seconds: float = 240) -> None:
        folder, kube = self.round_dir, self.setting.kube
        until(f"{NAME} reaches step {step}", lambda: last_step(folder) >= step, seconds, kube)

    def seconds_to_next_step(self, begun: float, seconds: float = 200) -> float:
        """From `begun` (of the clock) until training has taken a step that it had not taken before."""
        folder, before = self.round_dir, last_step(self.round_dir)
        until(f"a step after {before}", lambda: last_step(folder) > before, seconds, self.setting.kube)
        return time.monotonic() - begun

    def status(self) -> str:
        return str(run(CASPI, "status", NAME, "--to", "helm", "--cluster", self.cluster).stdout)

    def says(self, *words: str, seconds: float = 90) -> str:
        """Wait until `caspi status` says all of these words, in one line; returns the line."""
        seen = ""

        def found() -> str | None:
            nonlocal seen
            seen = self.status()
            return next((line for line in seen.splitlines() if all(word in line for word in words)), None)

        try:
            return until("status", found, seconds, pause=2)
        except AssertionError:
            raise AssertionError(
                f"caspi status never said {words}:\n{seen}\n{self.setting.kube.explain(NAME)}"
            ) from None

    def cancel(self) -> None:
        run(CASPI, "cancel", NAME, "--cluster", self.cluster)
        left = self.setting.kube.kubectl("get", "pytorchjobs,pods,jobs,services,configmaps", "-o", "name").split()
        assert [one for one in left if "kube-root-ca" not in one] == [], "cancel leaves nothing"


def fill(setting: Setting, claim: str, prepared: Path | None = None, megabytes: int | None = None) -> Path:
    """A claim with the demo's data, and what the job with the round directory `prepared` exported and audited."""
    folder = make_claim(setting.kube, claim, megabytes)
    (folder / "data/rounds").mkdir(parents=True)
    give(folder, (HOUSE / "demo/crowd", "data/demo/crowd"), (HOUSE / "demo/test", "data/demo/test"))
    if prepared:
        give(folder, *((prepared / stage, f"{prepared.name}/{stage}") for stage in ("export", "audit")))
    return folder


def submit(setting: Setting, cluster: Path, folder: Path, *options: str, file: Path = ROUND) -> Job:
    values = setting.folder / "values.yaml"
    values.write_text(yaml.safe_dump(SMALL))
    begun = time.monotonic()
    said = run(CASPI, "submit", file, "--cluster", cluster, "--values", values, *options).stdout
    assert NAME in said, said
    return Job(setting, cluster, folder, begun)
