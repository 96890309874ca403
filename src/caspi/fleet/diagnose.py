"""From a snapshot to what people want to know: how far, what is wrong, and the way out. Pure.

The verdict comes from the conditions of the PyTorchJob alone; pods, Jobs and events only say why.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from caspi.fleet.api import Object
from caspi.fleet.argo import again, starts
from caspi.fleet.causes import Cause, pod_cause
from caspi.fleet.history import ended_before
from caspi.fleet.objects import ago, conditions, event_time, events_about, holds, role, seconds_between
from caspi.fleet.refusals import one_line, refusal
from caspi.fleet.snapshot import DIGEST, Snapshot, is_ready
from caspi.records.heartbeat import Heartbeat, parse_heartbeat, parse_last_message

Phase = Literal[
    "gone", "preparing", "refused", "queued", "suspended", "starting", "running", "restarting", "succeeded", "failed"
]
ENDED: tuple[Phase, ...] = ("refused", "succeeded", "failed")
OPERATOR_SECONDS = 30
"""The training operator says something about a new job in less."""
RECENT = 15 * 60
"""Seconds for which an event of a pod that could not be made still counts."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """How a round on a cluster is doing."""

    round: str
    namespace: str
    digest: str | None
    phase: Phase
    workers: int
    """As many as should be."""
    ready: int
    at_least: int
    progress: Heartbeat | None
    checkpoint_ago: str | None
    causes: list[Cause]
    notes: list[str]
    """What follows, and what to do next."""
    preparing: str | None = None
    """How far preparation is."""

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    @property
    def blocking(self) -> Cause | None:
        return next((cause for cause in self.causes if cause.blocks), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(look: Snapshot) -> Diagnosis:
    job = look.job
    phase = _phase(look)
    elastic = (job or {}).get("spec", {}).get("elasticPolicy", {})
    spec = (job or {}).get("spec", {}).get("pytorchReplicaSpecs", {}).get("Worker", {})
    workers = int(spec.get("replicas", 0))
    ready = sum(is_ready(pod) for pod in worker_pods(look)) if phase not in ("succeeded", "failed") else 0
    progress = _progress(look)
    causes = _causes(look, phase)
    return Diagnosis(
        round=look.name,
        namespace=look.namespace,
        digest=((job or {}).get("metadata", {}).get("annotations") or {}).get(DIGEST),
        phase=phase,
        workers=workers,
        ready=ready,
        at_least=int(elastic.get("minReplicas", workers)),
        progress=progress,
        checkpoint_ago=ago(progress.saved, look.at) if progress and progress.saved else None,
        causes=causes,
        notes=_notes(look, phase, ready, workers, int(elastic.get("minReplicas", workers)), causes),
        preparing=_preparing(look) if phase == "preparing" else None,
    )


def render(diagnosis: Diagnosis) -> str:
    """The lines of `caspi status`."""
    lines = [headline(diagnosis)]
    if diagnosis.preparing:
        lines.append(f"  {diagnosis.preparing}")
    causes = _grouped(diagnosis.causes)
    width = max((len(cause.who) for cause in causes), default=0)
    lines += [f"  {cause.who:<{width}}  {cause.line}" for cause in causes]
    lines += [f"  {' ' * width}{'  ' if width else ''}{note}" for note in diagnosis.notes]
    return "\n".join(lines) + "\n"


def headline(diagnosis: Diagnosis) -> str:
    """One line: verdict, workers, step, checkpoint."""
    words = {"gone": "no PyTorchJob", "preparing": "Preparing", "refused": "Refused", "queued": "Queued"}
    cause = diagnosis.blocking
    if diagnosis.phase == "refused" and cause and not cause.id.startswith("gate-"):
        words["refused"] = "Preparation failed"
    parts = [diagnosis.round, words.get(diagnosis.phase, f"PyTorchJob {diagnosis.phase.capitalize()}")]
    if diagnosis.phase in ("starting", "running", "restarting", "failed"):
        parts.append(f"{diagnosis.ready} of {diagnosis.workers} workers")
    if beat := diagnosis.progress:
        parts.append(f"step {beat.step:,} of {beat.steps:,}" if beat.steps else f"step {beat.step:,}")
        if beat.loss is not None:
            parts.append(f"loss {beat.loss:.4f}")
        if beat.checkpoint is not None and diagnosis.phase == "failed":
            parts.append(f"last checkpoint step {beat.checkpoint:,} is whole")
        elif beat.checkpoint is not None and diagnosis.phase != "succeeded":
            when = f", {diagnosis.checkpoint_ago} ago" if diagnosis.checkpoint_ago else ""
            parts.append(f"last checkpoint step {beat.checkpoint:,}{when}")
    return "   ".join(parts)


def worker_pods(look: Snapshot) -> list[Object]:
    return [pod for pod in look.pods if role(pod, look.name).startswith("worker-")]


def gate_jobs(look: Snapshot) -> list[Object]:
    return [job for job in look.jobs if role(job, look.name).startswith("gate")]


def prepare_jobs(look: Snapshot) -> list[Object]:
    return [job for job in look.jobs if role(job, look.name).startswith("prepare")]


def _phase(look: Snapshot) -> Phase:
    job = look.job
    if job is None:
        return "gone"
    if holds(job, "Failed"):
        return "failed"
    if holds(job, "Succeeded"):
        return "succeeded"
    if job.get("spec", {}).get("runPolicy", {}).get("suspend"):
        prepares = [*prepare_jobs(look), *gate_jobs(look)]
        if any(holds(one, "Failed") for one in prepares):
            return "refused"
        if any(not holds(one, "Complete") for one in prepares):
            return "preparing"
        return "queued" if _queue(job) else "suspended"
    if holds(job, "Restarting"):
        return "restarting"
    return "running" if holds(job, "Running") and any(is_ready(pod) for pod in worker_pods(look)) else "starting"


def _causes(look: Snapshot, phase: Phase) -> list[Cause]:
    if phase == "succeeded":
        return []
    found = [cause for pod in look.pods if _counts(pod, look, phase) and (cause := pod_cause(pod, look))]
    if phase == "refused" and not any(cause.blocks for cause in found):
        found += [_failed_job(job) for job in look.jobs if holds(job, "Failed")]
    if phase == "failed" and not any(cause.blocks for cause in found):
        assert look.job is not None
        said = conditions(look.job)["Failed"]
        found.append(Cause("job-failed", "job", one_line(f"{said.get('reason')}: {said.get('message')}")))
    if phase in ("starting", "running", "restarting", "preparing", "suspended"):
        found += _not_made(look, phase)
        found += [cause for cause in [_operator(look)] if cause and not found]
    if phase == "queued":
        found.append(_queued(look))
    return [*found, *ended_before(look)]


def _counts(pod: Object, look: Snapshot, phase: Phase) -> bool:
    """Preparation matters until it is done; what trains matters then."""
    prepares = not role(pod, look.name).startswith("worker-")
    return phase in ("gone", "preparing", "refused") if prepares else True


def _failed_job(job: Object) -> Cause:
    said = conditions(job)["Failed"]
    return Cause("preparation-failed", role(job, ""), one_line(f"{said.get('reason')}: {said.get('message')}"))


def _not_made(look: Snapshot, phase: Phase) -> list[Cause]:
    """Pods that the API server refuses: no pod tells of them, only events of their owners do."""
    owners: list[tuple[str, Object]] = []
    if look.job and phase != "preparing":
        missing = look.job["spec"]["pytorchReplicaSpecs"]["Worker"].get("replicas", 1) - len(worker_pods(look))
        owners += [("job", look.job)] if missing > 0 else []
    if phase == "preparing":
        owners += [
            (role(job, look.name).split("-")[0], job) for job in look.jobs if not job.get("status", {}).get("active")
        ]
    found = []
    for who, owner in owners:
        failed = [
            event
            for event in events_about(look.events, owner, "FailedCreatePod", "FailedCreate", "FailedCreateService")
            if seconds_between(event_time(event), look.at) < RECENT and "already exists" not in event["message"]
        ]
        if failed:
            message = failed[-1]["message"]
            known = refusal(message)
            found.append(Cause(known.id, who, known.line) if known else Cause("pods-refused", who, one_line(message)))
    return found


def _operator(look: Snapshot) -> Cause | None:
    job = look.job
    if job is None or conditions(job) or worker_pods(look):
        return None
    age = seconds_between(job["metadata"].get("creationTimestamp"), look.at)
    if age <= OPERATOR_SECONDS:
        return None
    return Cause(
        "operator-down",
        "job",
        f"nobody has taken it up for {ago(job['metadata'].get('creationTimestamp'), look.at)}: is the training "
        "operator running? kubectl get pods -A | grep training-operator",
    )


def _queued(look: Snapshot) -> Cause:
    assert look.job is not None
    queue = _queue(look.job)
    if not look.workloads:
        return Cause(
            "queued", "job", f"waits in queue {queue}, and Kueue has made no Workload of it: is Kueue running?", True
        )
    said = conditions(look.workloads[-1])
    for kind in ("Evicted", "QuotaReserved", "Admitted"):
        one = said.get(kind, {})
        if (one.get("status") == "True") == (kind == "Evicted") and one.get("message"):
            since = ago(one.get("lastTransitionTime"), look.at)
            return Cause("queued", "job", f"waits in queue {queue} for {since}: {one_line(one['message'])}", False)
    return Cause("queued", "job", f"waits in queue {queue}", False)


def _queue(job: Object) -> str | None:
    queue: str | None = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    return queue


def _progress(look: Snapshot) -> Heartbeat | None:
    """The furthest heartbeat of the logs; of pods that ended, what they said last."""
    beats = [beat for lines in look.tails.values() for line in lines if (beat := parse_heartbeat(line))]
    best = max(beats, key=lambda beat: (beat.step, beat.checkpoint or 0), default=None)
    for pod in worker_pods(look):
        for status in pod.get("status", {}).get("containerStatuses") or []:
            ended = status.get("state", {}).get("terminated") or {}
            last = parse_last_message(ended.get("message"))
            if last and last.step is not None and (best is None or last.step >= best.step):
                best = Heartbeat(last.step, best.steps if best else 0, best.loss if best else None, last.checkpoint)
    return best


def _preparing(look: Snapshot) -> str:
    parts = []
    for job in prepare_jobs(look):
        done, of = int(job.get("status", {}).get("succeeded", 0)), int(job["spec"].get("completions", 1))
        parts.append(f"{done} of {of} other shards done")
    for pod in look.pods:
        lines = [line for line in look.tails.get(pod["metadata"]["name"], []) if line.strip()]
        if role(pod, look.name) == "gate" and lines:
            parts.append(one_line(re.sub(r"\|.*?\|", " ", lines[-1]), 120))  # without the bar of a progress bar
    return "export, audit and gate, before any GPU is asked for" + (f": {'; '.join(parts)}" if parts else "")


def _notes(look: Snapshot, phase: Phase, ready: int, workers: int, at_least: int, causes: list[Cause]) -> list[str]:
    notes = list(look.unread)
    if phase == "running" and ready < workers:
        if ready >= at_least:
            notes.append(f"training goes on with {ready}; the others join by themselves when there is room")
        else:
            notes.append(
                f"training waits: it needs {at_least} workers, and {ready} {'is' if ready == 1 else 'are'} there"
            )
    if phase == "succeeded":
        notes.append(f"the model is in {directory(look)}/model on the claim{claim_name(look)}")
    if phase == "gone":
        notes.append(f"what is left of it: `caspi cancel {look.name}` removes it; {starts(look)} starts it again")
    if phase == "suspended" and not causes:
        notes.append(f"it is suspended, and nothing of Caspi will start it: {again(look)}, or kubectl edit")
    return notes


def directory(look: Snapshot) -> str:
    """Where the round lies on the claim."""
    digest = ((look.job or {}).get("metadata", {}).get("annotations") or {}).get(DIGEST, "")
    return f"/rounds/{look.name}-{digest[:8]}"


def claim_name(look: Snapshot) -> str:
    """NAME, with a space before it; nothing when it is not known."""
    template = (look.job or {}).get("spec", {}).get("pytorchReplicaSpecs", {}).get("Worker", {}).get("template", {})
    for volume in template.get("spec", {}).get("volumes", []):
        if "persistentVolumeClaim" in volume and volume["name"] != "cache":
            return f" {volume['persistentVolumeClaim']['claimName']}"
    return ""


def _grouped(causes: list[Cause]) -> list[Cause]:
    """The same line for several is written once."""
    by_line: dict[tuple[str, str], list[Cause]] = {}
    for cause in causes:
        by_line.setdefault((cause.id, cause.line), []).append(cause)
    return [replace(same[0], who=_together([cause.who for cause in same])) for same in by_line.values()]


def _together(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"
