"""What a run on Kubeflow Pipelines says about its round: pure, from plain values to lines and verdicts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from caspi.errors import CaspiError, Diverged, GateRefused, OutOfBudget, StageFailed, UserError
from caspi.fleet.objects import duration
from caspi.fleet.refusals import one_line

STEPS = ("export", "audit", "gate", "train", "benchmark", "compare", "report", "free")
"""In their order; `free` is the exit task."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
Verdict = Literal["running", "passed", "refused", "failed", "canceled"]
CODES: dict[int, type[CaspiError]] = {
    one.exit_code: one for one in (UserError, GateRefused, StageFailed, Diverged, OutOfBudget)
}


@dataclass(frozen=True, slots=True)
class Task:
    """A node of the run: a step, and what the backend makes around one."""

    id: str
    name: str
    state: str
    started: datetime | None = None
    finished: datetime | None = None
    error: str = ""
    children: tuple[str, ...] = ()
    """Ids."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the API gives it."""

    id: str
    name: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED, PAUSED; empty just after it was made."""
    created: datetime
    finished: datetime | None = None
    archived: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    tasks: tuple[Task, ...] = ()

    @property
    def active(self) -> bool:
        return self.state not in (*ENDED, "CANCELING")

    @property
    def round(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def digest(self) -> str:
        """All of it where the run was made with it, else the eight digits of its name."""
        given = self.parameters.get("digest")
        return given if isinstance(given, str) and given else self.name.rpartition("-")[2]

    @property
    def verdict(self) -> Verdict:
        """A run also succeeds when its gate refused: then training was skipped."""
        if self.state == "SUCCEEDED":
            names = {task.name for task in self.tasks if task.state == "SUCCEEDED"}
            return "refused" if "gate" in names and "train" not in names else "passed"
        if self.state == "FAILED":
            return "failed"
        return "canceled" if self.state in ("CANCELED", "SKIPPED") else "running"


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    state: str
    """In small letters; empty when nothing is known of it yet."""
    started: datetime | None = None
    finished: datetime | None = None
    error: str = ""


def is_of(run: Run, digest: str) -> bool:
    """Was this run made for the round with this digest?"""
    return digest.startswith(run.digest)


def steps(run: Run) -> list[Step]:
    """The steps of the round, each with the error of whatever failed under it."""
    by_id = {task.id: task for task in run.tasks}
    found = []
    for name in STEPS:
        own = [task for task in run.tasks if task.name in (name, f"{name}-driver")]
        task = next((task for task in reversed(own) if task.name == name), None)
        problem = next((one.error for task in own for one in _under(task, by_id) if one.error), "")
        state = task.state if task else ("FAILED" if problem else "")
        found.append(
            Step(
                name,
                state.lower(),
                task.started if task else None,
                task.finished if task else None,
                one_line(problem) if state == "FAILED" else "",
            )
        )
    return found


def problem(run: Run) -> CaspiError | None:
    """What `--wait` ends with: the exit codes of docs/exit-codes.md."""
    match run.verdict:
        case "refused":
            return GateRefused(f"{run.round}: {_REFUSED}")
        case "canceled":
            return StageFailed(f"{run.round}: the run was cancelled")
        case "failed":
            step = next((one for one in steps(run) if one.state == "failed" and one.name != "free"), None)
            line = (step.error if step else "") or one_line(run.error) or "failed; its log says why"
            code = re.search(r"exit(?:ed with)? code:? (\d+)", line)
            kind = CODES.get(int(code[1]), StageFailed) if code else StageFailed
            return kind(f"{run.round}: {step.name if step else 'the run'}: {line}")
    return None


def describe(run: Run, url: str) -> dict[str, Any]:
    """For `--json`: stable names."""
    return {
        "round": run.round,
        "spec": run.digest,
        "run": run.id,
        "name": run.name,
        "state": run.state or "PENDING",
        "verdict": run.verdict,
        "created": _text(run.created),
        "finished": _text(run.finished),
        "error": one_line(run.error),
        "url": url,
        "steps": [
            {
                "name": one.name,
                "state": one.state,
                "started": _text(one.started),
                "finished": _text(one.finished),
                "error": one.error,
            }
            for one in steps(run)
        ],
        "notes": _notes(run),
    }


def headline(run: Run, url: str, now: datetime | None = None) -> str:
    """One line: verdict, time, link."""
    words = {"running": (run.state or "PENDING").lower(), "refused": "refused by its gate", "passed": "succeeded"}
    state = words.get(run.verdict, run.verdict)
    return f"{run.name}   {state}   {_took(run.created, run.finished, now)}   {url}"


def render(run: Run, url: str, now: datetime | None = None) -> str:
    """The lines of `caspi status --to kfp`."""
    lines = [headline(run, url, now)]
    shown = steps(run)
    if any(step.state for step in shown):
        for step in shown:
            parts = [f"  {step.name:<9}", f"{step.state or '-':<10}"]
            if step.started and step.state not in ("skipped", "pending"):
                parts.append(f"{_took(step.started, step.finished, now):<8}")
            lines.append(f"{'  '.join(parts).rstrip()}{'  ' if step.error else ''}{step.error}")
    if run.error and not any(step.error for step in shown):
        lines.append(f"  {one_line(run.error)}")
    lines += [f"  {note}" for note in _notes(run)]
    return "\n".join(lines) + "\n"


_REFUSED = (
    "the gate refused, and training was skipped: its step in the UI shows the decision; a CAUTION is signed with "
    "--approve-by, --approve-reason and the --approve-audit that stands there"
)


def _notes(run: Run) -> list[str]:
    notes = []
    train = next(one for one in steps(run) if one.name == "train")
    if run.verdict == "running" and train.state in ("running", "pending") and run.parameters.get("train_by") == "helm":
        notes.append(f"training is a PyTorchJob: caspi status {run.round} --to helm")
    if run.verdict == "refused":
        notes.append(_REFUSED)
    if run.verdict in ("failed", "canceled"):
        notes.append("`caspi submit` with the same round goes on: what is done is in its directory on the claim")
    return notes


def _under(task: Task, by_id: dict[str, Task]) -> Iterator[Task]:
    """What ran for a task comes first: it knows more than what waited for it. Each once, though a graph may meet."""
    seen, todo = {task.id}, [task]
    for one in todo:
        for child in one.children:
            # what follows a task is its child too: the next step and its errors are not this one's
            if (found := by_id.get(child)) and child not in seen and found.name.startswith("executor"):
                seen.add(child)
                todo.append(found)
    yield from reversed(todo)


def _took(start: datetime, end: datetime | None, now: datetime | None) -> str:
    return duration(((end or now or datetime.now(UTC)) - start).total_seconds())


def _text(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None
