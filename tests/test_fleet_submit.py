"""What `caspi submit` does next, for all that may be there: a table, and then whole stories on a small cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from caspi.errors import CaspiError, GateRefused
from caspi.fleet import submit as submit_module
from caspi.fleet.causes import Cause
from caspi.fleet.diagnose import Diagnosis
from caspi.fleet.helm import Release
from caspi.fleet.submit import Seen, next_step, verdict

DIGEST, OTHER = "a" * 64, "b" * 64
WANTED: dict[str, Any] = {"round": {"name": "demo", "digest": DIGEST, "file": "..."}, "workers": {"count": 2}}
DEPLOYED = Release(1, "deployed", 500, "sh.helm.release.v1.demo.v1", "uid-release")
NOON, LATER = "2026-11-21T12:00:00Z", "2026-11-21T12:10:00Z"


def thing(name: str, *conditions: str, component: str = "train", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": NOON,
            "labels": {"app.kubernetes.io/component": component},
            "annotations": {"caspi.dev/spec-digest": DIGEST},
            **metadata,
        },
        "spec": {},
        "status": {"conditions": [{"type": one, "status": "True"} for one in conditions], "completionTime": NOON},
    }


def job(*conditions: str, suspend: bool = False, **metadata: Any) -> dict[str, Any]:
    return {**thing("demo", *conditions, **metadata), "spec": {"runPolicy": {"suspend": suspend}}}


def gate(*conditions: str, **metadata: Any) -> dict[str, Any]:
    return thing("demo-gate-1", *conditions, component="gate", **metadata)


def prepare(*conditions: str) -> dict[str, Any]:
    return thing("demo-prepare-1", *conditions, component="prepare")


QUEUED = {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}
GOING = {"deletionTimestamp": NOON}
MORE = {**WANTED, "workers": {"count": 3}}
APPROVED = {**WANTED, "preparation": {"approval": {"by": "Dana"}}}
HERE = Seen(job("Running"), [gate("Complete")], DEPLOYED, WANTED)


@pytest.mark.parametrize(
    ("wanted", "seen", "kind", "outcome", "things"),
    [
        # nothing, and what a cut off install leaves of it
        (WANTED, Seen(), "install", "submitted", []),
        (WANTED, Seen(release=replace(DEPLOYED, status="failed")), "install", "resumed", []),
        (WANTED, Seen(release=replace(DEPLOYED, status="pending-install", seconds=2)), "wait", "", []),
        (WANTED, Seen(release=replace(DEPLOYED, status="pending-install", seconds=60)), "drop", "", []),
        (WANTED, replace(HERE, release=replace(DEPLOYED, status="pending-upgrade", seconds=60)), "drop", "", []),
        (WANTED, replace(HERE, release=replace(DEPLOYED, status="uninstalling")), "uninstall", "", []),
        (WANTED, replace(HERE, release=None, values={}), "install", "resumed", []),
        # there already
        (WANTED, HERE, "end", "there already", []),
        (WANTED, replace(HERE, job=job("Succeeded")), "end", "done already", []),
        (MORE, replace(HERE, job=job("Succeeded")), "end", "done already", []),
        (MORE, HERE, "install", "updated", []),
        (APPROVED, HERE, "end", "there already", []),
        (WANTED, replace(HERE, job=job(suspend=True), jobs=[gate()]), "end", "there already", []),
        (APPROVED, replace(HERE, job=job(suspend=True), jobs=[gate()]), "install", "updated", []),
        # another round under this name
        (WANTED, replace(HERE, job=job(annotations={"caspi.dev/spec-digest": OTHER})), "refuse", "", []),
        (WANTED, replace(HERE, job=job("Succeeded", annotations={"caspi.dev/spec-digest": OTHER})), "refuse", "", []),
        (WANTED, replace(HERE, job=job(annotations={})), "refuse", "", []),
        # what failed is made again, and so is the gate that would let it go
        (WANTED, replace(HERE, job=job("Failed")), "delete", "", ["demo", "demo-gate-1"]),
        (WANTED, replace(HERE, job=job("Failed"), jobs=[]), "delete", "", ["demo"]),
        (WANTED, replace(HERE, job=job(suspend=True), jobs=[gate("Failed")]), "delete", "", ["demo-gate-1"]),
        (
            WANTED,
            replace(HERE, job=job(suspend=True), jobs=[gate(), prepare("Failed")]),
            "delete",
            "",
            ["demo-prepare-1"],
        ),
        (WANTED, replace(HERE, jobs=[gate("Failed")]), "end", "there already", []),
        # deleted by hand
        (WANTED, replace(HERE, job=None), "delete", "", ["demo-gate-1"]),
        (WANTED, replace(HERE, job=None, jobs=[gate()]), "install", "resumed", []),
        (WANTED, replace(HERE, job=job(suspend=True), jobs=[]), "install", "resumed", []),
        (
            WANTED,
            replace(HERE, job=job(suspend=True, creationTimestamp=LATER), jobs=[gate("Complete")]),
            "delete",
            "",
            ["demo-gate-1"],
        ),
        # going away
        (WANTED, replace(HERE, job=job("Failed", **GOING)), "wait", "", []),
        (WANTED, replace(HERE, job=None, jobs=[gate("Complete", **GOING)]), "wait", "", []),
        # in a queue: Kueue suspends what waits, and that is no gate's business
        (WANTED, replace(HERE, job=job(suspend=True, **QUEUED)), "end", "there already", []),
        (
            WANTED,
            replace(HERE, job=job(suspend=True, **QUEUED | {"creationTimestamp": LATER})),
            "end",
            "there already",
            [],
        ),
    ],
)
def test_the_next_step(wanted: dict[str, Any], seen: Seen, kind: str, outcome: str, things: list[str]) -> None:
    step = next_step("demo", wanted, seen)
    assert step.kind == kind
    assert [one["metadata"]["name"] for one in step.things] == things
    if outcome:
        assert step.outcome == outcome
    if kind == "refuse":
        assert "another name" in step.line or "a new name" in step.line


ARGO = {"annotations": {"caspi.dev/spec-digest": DIGEST, "argocd.argoproj.io/tracking-id": "asr-demo:kind:asr/demo"}}


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (Seen(job("Running", **ARGO), [gate("Complete", **ARGO)]), "refuse"),
        (Seen(job("Failed", **ARGO), [gate("Complete", **ARGO)]), "refuse"),
        (Seen(job(suspend=True, **ARGO), [gate("Failed", **ARGO)]), "refuse"),
        (Seen(None, [gate("Complete", **ARGO)]), "refuse"),
        (Seen(job("Succeeded", **ARGO), []), "end"),
    ],
)
def test_what_argo_cd_keeps_is_left_to_it(seen: Seen, kind: str) -> None:
    step = next_step("demo", WANTED, seen)
    assert step.kind == kind
    if kind == "refuse":
        assert "kept by Argo CD's application asr-demo" in step.line and "argocd app sync asr-demo" in step.line


@dataclass
class SmallCluster:
    """Does what Helm, the API server and the operator do, one call at a time."""

    seen: Seen = field(default_factory=Seen)
    calls: int = 0

    def install(self, values: dict[str, Any]) -> list[Callable[[], None]]:
        """The moments of `helm upgrade --install` between which its client may be killed."""
        revision = self.seen.release.revision + 1 if self.seen.release else 1

        def release(status: str) -> Callable[[], None]:
            def write() -> None:
                given = values if status == "deployed" else self.seen.values
                self.seen = replace(self.seen, release=Release(revision, status, 0, f"v{revision}", "u"), values=given)

            return write

        def make_gate() -> None:
            if not self.seen.jobs:
                self.seen = replace(self.seen, jobs=[gate()])

        def make_job() -> None:
            if self.seen.job is None:
                self.seen = replace(self.seen, job=job(suspend=True, creationTimestamp=LATER))

        return [release("pending-install"), make_gate, make_job, release("deployed")]

    def run(self, killed_after: int) -> bool:
        """Submit until it ends (True), or is killed after so many calls (False)."""
        while True:
            step = next_step("demo", WANTED, self.seen)
            moments: list[Callable[[], None]] = []
            match step.kind:
                case "end":
                    return True
                case "drop":
                    moments = [lambda: self._write(release=None)]
                case "wait":
                    assert self.seen.release
                    self._write(release=replace(self.seen.release, seconds=100))
                case "uninstall":
                    moments = [lambda: self._write(job=None, jobs=[], release=None, values={})]
                case "delete":
                    moments = [lambda name=one["metadata"]["name"]: self._delete(name) for one in step.things]  # type: ignore[misc]
                case "install":
                    moments = self.install(WANTED)
                case _:
                    raise AssertionError(step)
            for moment in moments:
                if self.calls >= killed_after:
                    return False
                self.calls += 1
                moment()

    def _write(self, **changes: Any) -> None:
        self.seen = replace(self.seen, **changes)

    def _delete(self, name: str) -> None:
        left = [one for one in self.seen.jobs if one["metadata"]["name"] != name]
        self.seen = replace(self.seen, jobs=left, job=None if name == "demo" else self.seen.job)


STARTS = {
    "nothing": Seen(),
    "failed": replace(HERE, job=job("Failed")),
    "gate failed": replace(HERE, job=job(suspend=True), jobs=[gate("Failed")]),
    "deleted by hand": replace(HERE, job=None),
    "half uninstalled": replace(HERE, job=None, release=replace(DEPLOYED, status="uninstalling")),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("killed_after", range(8))
def test_killed_anywhere_and_repeated_ends_the_same(start: str, killed_after: int) -> None:
    """The release is deployed, and the job waits for a gate that runs (it would wait for ever without one)."""
    there = SmallCluster(STARTS[start])
    there.run(killed_after)
    assert there.run(10**6)
    seen = there.seen
    assert seen.release and seen.release.status == "deployed"
    assert seen.values == WANTED
    assert seen.job and seen.job["spec"]["runPolicy"]["suspend"]
    assert [one["status"]["conditions"] for one in seen.jobs] == [[]], "one gate, and it has not ended"


def test_a_second_submit_changes_nothing() -> None:
    there = SmallCluster()
    there.run(10**6)
    before, calls = there.seen, there.calls
    assert there.run(10**6)
    assert (there.seen, there.calls) == (before, calls)


def diagnosis(phase: Any, *causes: Cause) -> Diagnosis:
    return Diagnosis("demo", "asr", DIGEST, phase, 2, 0, 1, None, None, list(causes), [])


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (Cause("gate-caution", "gate", "the audit says CAUTION"), 3),
        (Cause("bad-input", "worker-0", "no such column"), 2),
        (Cause("diverged", "worker-0", "NaN"), 5),
        (Cause("deadline", "worker-0", "time is up"), 6),
        (Cause("out-of-memory", "worker-0", "OOMKilled"), 4),
    ],
)
def test_wait_ends_with_the_code_of_the_cause(cause: Cause, code: int) -> None:
    note = Cause("replaced", "worker-1", "was started anew", blocks=False)
    problem = verdict(diagnosis("failed", note, cause))
    assert isinstance(problem, CaspiError)
    assert (problem.exit_code, str(problem)) == (code, f"demo: {cause.line}")


def test_wait_ends_well_only_by_the_conditions() -> None:
    assert verdict(diagnosis("succeeded")) is None
    assert verdict(diagnosis("failed")) is not None
    assert isinstance(verdict(diagnosis("refused", Cause("gate-refused", "gate", "STOP"))), GateRefused)


@pytest.mark.parametrize("rule", ["_passed_gate", "_waits_for_nobody"])
def test_the_stories_find_the_faults_that_they_are_for(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule, some cut leaves a job that waits for a gate that has ended, or for none."""
    monkeypatch.setattr(submit_module, rule, lambda *_: False)
    failed = 0
    for start in STARTS:
        for killed_after in range(8):
            try:
                test_killed_anywhere_and_repeated_ends_the_same(start, killed_after)
            except AssertionError:
                failed += 1
    assert failed >= 8
