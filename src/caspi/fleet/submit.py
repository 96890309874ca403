"""Bring a round onto a cluster, whatever is there already: the same once, twice, or killed in between and repeated.

A loop over one question: what is there, and so what is the next step? `next_step` is pure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from caspi.errors import CaspiError, Diverged, GateRefused, OutOfBudget, StageFailed, UserError
from caspi.fleet.api import PYTORCHJOBS, Api, NotFound, Object
from caspi.fleet.argo import application, cancel_and_sync
from caspi.fleet.diagnose import Diagnosis
from caspi.fleet.helm import SECRETS, Busy, Helm, Release, read_release
from caspi.fleet.objects import holds, seconds_between
from caspi.fleet.snapshot import DIGEST, JOBS, ROUND, component
from caspi.fleet.values import values_text

CUT_OFF = 20.0
"""Seconds after which a pending release is one whose client died: nothing here makes Helm wait for anything."""
PATIENCE = 600.0
"""Seconds until what is being deleted has to be gone: workers save a checkpoint first."""
Outcome = Literal["submitted", "resumed", "updated", "there already", "done already"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What of the round is on the cluster."""

    job: Object | None = None
    jobs: list[Object] = field(default_factory=list)
    release: Release | None = None
    values: dict[str, Any] = field(default_factory=dict)
    """Of a deployed release."""


@dataclass(frozen=True, slots=True)
class Step:
    """`refuse` and `end` are the last ones, and so is `install`."""

    kind: Literal["refuse", "end", "wait", "drop", "uninstall", "delete", "install"]
    line: str = ""
    outcome: Outcome = "submitted"
    things: list[Object] = field(default_factory=list)


def next_step(name: str, wanted: dict[str, Any], seen: Seen) -> Step:
    """What to do next so that the release `name` has the values `wanted`, and its round goes on."""
    step = _next_step(name, wanted, seen)
    kept = application(seen.job, *seen.jobs)
    if kept and step.kind not in ("refuse", "end"):
        return Step(
            "refuse",
            f"{name} is kept by Argo CD's application {kept}, not by Helm: {cancel_and_sync(name, kept)} starts it "
            "again; docs/gitops.md says how to sign a CAUTION",
        )
    return step


def _next_step(name: str, wanted: dict[str, Any], seen: Seen) -> Step:
    job, release = seen.job, seen.release
    if job and (refused := _refused(name, wanted["round"]["digest"], job)):
        return Step("refuse", refused)
    if release and release.status == "uninstalling":
        return Step("uninstall", "a cancel was cut off: finishing it first")
    if release and release.pending:
        if release.seconds < CUT_OFF:
            return Step("wait", "another submit is at work")
        return Step(
            "drop", f"a submit was cut off {release.seconds:.0f} s ago (revision {release.revision}): repeating it"
        )
    if going := [thing for thing in (job, *seen.jobs) if thing and thing["metadata"].get("deletionTimestamp")]:
        return Step("wait", f"waiting until {_names(going)} of before {'is' if len(going) == 1 else 'are'} gone")
    if job and holds(job, "Succeeded"):
        return Step("end", f"{name} is trained already", "done already")
    if again := _to_make_again(job, seen.jobs):
        return Step("delete", _why_again(job, again), things=again)
    if job is None or release is None or release.status != "deployed":
        return Step("install", outcome="resumed" if seen.jobs or release else "submitted")
    if _waits_for_nobody(job, wanted, seen.jobs):
        return Step("install", outcome="resumed")
    if _settled(wanted, job) != _settled(seen.values, job):
        return Step("install", outcome="updated")
    return Step("end", f"{name} is there already, with the same round and settings: nothing to do", "there already")


def submit(api: Api, helm: Helm, chart: Path, values: dict[str, Any], say: Callable[[str], None]) -> Outcome:
    """Take steps until the round is on its way. Raises UserError when it can't be."""
    name, again, said, until = values["round"]["name"], False, "", time.monotonic() + PATIENCE
    while True:
        seen = look(api, helm, name)
        step = next_step(name, values, seen)
        if step.line and step.line != said:
            if step.kind == "refuse":
                raise UserError(step.line, where=api.where)
            say(step.line)
            said = step.line
        match step.kind:
            case "end":
                return step.outcome
            case "wait":
                if time.monotonic() > until:
                    raise UserError(f"{step.line}, for {PATIENCE:.0f} s: `caspi status {name} --to helm` says why")
                time.sleep(1)
            case "drop":
                assert seen.release
                api.delete(f"{SECRETS}/{seen.release.secret}", seen.release.uid)
            case "uninstall":
                helm.uninstall(name)
            case "delete":
                again = True
                for thing in step.things:
                    api.delete(_path(thing), thing["metadata"]["uid"])
            case "install":
                try:
                    helm.install(name, chart, values_text(values))
                except Busy:
                    time.sleep(1)
                    continue
                _check(api, name, values["round"]["digest"])
                return "resumed" if again else step.outcome


def look(api: Api, helm: Helm, name: str) -> Seen:
    """What is there now."""
    try:
        job = api.get(f"{PYTORCHJOBS}/{name}")
    except NotFound:
        job = None
    selector = f"{ROUND}={name},app.kubernetes.io/component in (gate,prepare)"
    release = read_release(api, name, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    values = helm.values(name) if release and release.status == "deployed" else {}
    return Seen(job, api.items(JOBS, labelSelector=selector), release, values)


def _refused(name: str, digest: str, job: Object) -> str | None:
    there = (job["metadata"].get("annotations") or {}).get(DIGEST)
    if there == digest:
        return None
    if there is None:
        return f"a PyTorchJob {name} is there that is none of Caspi's; give the round another name"
    return (
        f"{name} is there already with another round ({there[:8]}, not {digest[:8]}): give the changed round a new "
        f"name, or remove the old one with `caspi cancel {name}`"
    )


def _to_make_again(job: Object | None, jobs: list[Object]) -> list[Object]:
    """What has ended and stands in the way: a failed job, Jobs that failed, a gate of a job that is gone."""
    failed = [one for one in jobs if holds(one, "Failed")]
    if job and holds(job, "Failed"):
        return [job, *failed, *(one for one in jobs if _passed_gate(one))]
    if job is None:
        return [*failed, *(one for one in jobs if _passed_gate(one))]
    if not _suspended(job):
        return []
    made = job["metadata"].get("creationTimestamp")
    stale = [
        one
        for one in jobs
        if _passed_gate(one) and seconds_between(one["status"].get("completionTime"), made) > 0 and not _queued(job)
    ]
    return [*failed, *stale]


def _why_again(job: Object | None, things: list[Object]) -> str:
    if job and holds(job, "Failed"):
        return f"PyTorchJob {job['metadata']['name']} has failed: it is started again, from its last checkpoint"
    return f"{_names(things)} {'is' if len(things) == 1 else 'are'} started again"


def _waits_for_nobody(job: Object, wanted: dict[str, Any], jobs: list[Object]) -> bool:
    """Suspended, and no gate is there that would start it."""
    prepares = wanted.get("preparation", {}).get("enabled", True)
    return prepares and _suspended(job) and not _queued(job) and not any(component(one) == "gate" for one in jobs)


def _settled(values: dict[str, Any], job: Object) -> dict[str, Any]:
    """What still matters: once training was let go, how it was prepared doesn't."""
    if _suspended(job) and not _queued(job):
        return values
    return {name: value for name, value in values.items() if name != "preparation"}


def _passed_gate(job: Object) -> bool:
    return component(job) == "gate" and holds(job, "Complete")


def _suspended(job: Object) -> bool:
    return bool(job.get("spec", {}).get("runPolicy", {}).get("suspend"))


def _queued(job: Object) -> bool:
    return "kueue.x-k8s.io/queue-name" in (job["metadata"].get("labels") or {})


def _path(thing: Object) -> str:
    kind = JOBS if "batch" in str(thing.get("apiVersion", "batch/v1")) else PYTORCHJOBS
    return f"{kind}/{thing['metadata']['name']}"


def _names(things: list[Object]) -> str:
    return ", ".join(str(thing["metadata"]["name"]) for thing in things)


def _check(api: Api, name: str, digest: str) -> None:
    """Two people may submit at the same moment: the round that is there is the one that won."""
    job = api.get(f"{PYTORCHJOBS}/{name}")
    if refused := _refused(name, digest, job):
        raise UserError(refused, where=api.where)


def verdict(diagnosis: Diagnosis) -> CaspiError | None:
    """What `caspi submit --wait` ends with: the exit codes of docs/exit-codes.md, from a verdict of the conditions."""
    if diagnosis.phase == "succeeded":
        return None
    cause = diagnosis.blocking
    kinds: dict[str, type[CaspiError]] = {
        "gate-refused": GateRefused,
        "gate-caution": GateRefused,
        "bad-input": UserError,
        "diverged": Diverged,
        "out-of-budget": OutOfBudget,
        "deadline": OutOfBudget,
    }
    kind = kinds.get(cause.id, StageFailed) if cause else StageFailed
    return kind(f"{diagnosis.round}: {cause.line}" if cause else f"{diagnosis.round}: {diagnosis.phase}")
