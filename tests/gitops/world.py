"""Three locks that are merged at once, and what came of them: what the tests share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster.jobs import ROUND, Setting, fill
from tests.cluster.kube import Kube, until
from tests.gitops import argo

T = TypeVar("T")
MERGED, DOUBTFUL, DIVERGES = "merged", "doubtful", "diverges"
CHANGES = {
    MERGED: {"epochs: 3": "epochs: 8"},
    DOUBTFUL: {
        "epochs: 3": "epochs: 4",
        "proceed: {low_quality: 15%, any_domain: 25%}": "proceed: {low_quality: 5%, any_domain: 5%}",
    },
    DIVERGES: {
        "warmup_steps: 20": "warmup_steps: 1",
        "evaluate: {every_steps: 20, utterances: 20}": "evaluate: {every_steps: 2, utterances: 20}",
        "last: 2, best: 1}": "last: 2, best: 1}\n  stop: {wer_above: 0.01}",
    },
}
"""To tests/cluster/rounds/elastic.yaml: one trains for a while, one asks for a signature, one is stopped."""


@dataclass(frozen=True, slots=True)
class World:
    """A repository with three locks, the cluster on which they train, and every version of what was made."""

    kube: Kube
    repository: argo.Repository
    claim: Path
    jobs: argo.Watch
    applications: argo.Watch
    pushed: float

    def job(self, name: str) -> dict[str, Any]:
        return self.kube.get("pytorchjob", name)

    def pods(self, name: str) -> dict[str, str]:
        """uid of each of a round's pods that are there."""
        found = self.kube.items("pods", f"caspi.dev/round={name}")
        return {pod["metadata"]["name"]: uid(pod) for pod in found}

    def round_dir(self, name: str) -> Path:
        return self.waits(name, lambda: next(self.claim.glob(f"{name}-????????"), None))

    def waits(self, name: str, test: Callable[[], T | None], seconds: float = 300) -> T:
        """Until it is true of a round; if it never is, with all that tells why."""
        try:
            return until(name, test, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{argo.explain(name, self.kube)}") from None


def make_world(setting: Setting, repository: argo.Repository, folder: Path) -> Iterator[World]:
    """Everything up to the push of the locks."""
    kube, claim = setting.kube, fill(setting, "rounds")
    for name, changed in CHANGES.items():
        text = ROUND.read_text().replace("round: elastic", f"round: {name}")
        for old, new in changed.items():
            assert old in text, old
            text = text.replace(old, new)
        (repository.folder / f"rounds/{name}.yaml").write_text(text)
    cluster = setting.cluster_file("rounds", nodes=1)
    (repository.folder / "clusters/test.yaml").write_text(cluster.read_text())
    repository.merge("The chart, a cluster and three rounds")
    argo.apply_manifests(kube.namespace, folder)
    jobs = argo.watch(kube, "pytorchjobs", folder / "jobs.json")
    applications = argo.watch(argo.ARGO, "applications.argoproj.io", folder / "applications.json")
    for name in CHANGES:
        repository.lock(name, claim / "data/rounds")
    repository.merge("Three locks")
    yield World(kube, repository, claim, jobs, applications, time.monotonic())
    for one in (jobs, applications):
        one.process.terminate()


def uid(thing: dict[str, Any]) -> str:
    return str(thing.get("metadata", {}).get("uid", ""))


def suspended(job: dict[str, Any]) -> bool:
    return bool(job["spec"]["runPolicy"].get("suspend", False))


def changes(values: Iterable[T]) -> list[T]:
    """Without repetitions."""
    found: list[T] = []
    for value in values:
        if found[-1:] != [value]:
            found.append(value)
    return found
