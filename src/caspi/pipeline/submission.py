"""Bring a round to Kubeflow Pipelines, whatever is there already: the same once, twice, by two people, or cut off.

As for Helm it is a loop over one question: what is there, and so what is the next step? `next_step` is pure. The
backend lets any number of runs have one name, so of those that are made at the same moment the oldest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from caspi.errors import StageFailed, UserError
from caspi.fleet.api import PYTORCHJOBS, NotFound, connect
from caspi.pipeline.answers import NoAnswer, There
from caspi.pipeline.given import Package
from caspi.pipeline.job import FREED, RUN, free
from caspi.pipeline.package import NAME
from caspi.pipeline.runs import Backend
from caspi.pipeline.state import Run, is_of, problem, render
from caspi.spec import ClusterSpec, RoundSpec
from caspi.spec.cluster import Kubernetes
from caspi.spec.load import parse

SETTLE = 1.5
"""Seconds until a run that somebody else made at the same moment is listed, and older or not: times are in seconds."""
PATIENCE = 600.0
"""Seconds until a run that is being terminated has to have ended."""
LOOK = 5.0
TRIES = 5
"""So often in a row what makes something may stay without an answer."""
Say = Callable[[str], None]
Outcome = Literal["submitted", "resumed", "there already", "done already"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run."""

    round: str
    digest: str
    experiment: str
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.round}-{self.digest[:8]}"


@dataclass(frozen=True, slots=True)
class Next:
    """`refuse` and `end` are the last ones."""

    kind: Literal["refuse", "end", "wait", "make"]
    line: str = ""
    outcome: Outcome = "submitted"
    run: Run | None = None
    stop: list[Run] = field(default_factory=list)
    """Runs of this round that another one makes needless."""


def next_step(wanted: Wanted, seen: list[Run], made: str = "") -> Next:
    """What to do next; `seen` are the round's runs, the oldest first, `made` the id of the one made here."""
    same = [run for run in seen if is_of(run, wanted.digest)]
    going = [run for run in seen if run.active]
    if going and not is_of(going[0], wanted.digest):
        return Next("refuse", _other(wanted, going[0]), stop=[run for run in same if run.active])
    if going:
        first, doubles = going[0], [run for run in same if run.active][1:]
        if first.id == made:
            started = any(not run.active for run in same)
            return Next("end", outcome="resumed" if started else "submitted", run=first, stop=doubles)
        mine = any(run.id == made for run in doubles)
        line = "was submitted a moment before by somebody else: that run goes on" if mine else "is there already"
        return Next("end", f"{wanted.round} {line}", "there already", first, doubles)
    kept = [run for run in seen if run.verdict == "passed" and not run.archived]
    if other := next((run for run in kept if not is_of(run, wanted.digest)), None):
        return Next("refuse", _other(wanted, other))
    if done := next((run for run in reversed(kept) if is_of(run, wanted.digest)), None):
        if done.id == made:
            return Next("end", outcome="submitted", run=done)
        return Next("end", f"{wanted.round} is done already", "done already", done)
    if ending := next((run for run in seen if run.state == "CANCELING"), None):
        return Next("wait", f"waiting until run {ending.id} has ended")
    before = same[-1] if same else None
    if before and before.id == made:
        return Next("end", f"{wanted.round}: the run ended at once", "submitted", before)
    words = {"refused": "was refused by its gate", "failed": "has failed", "canceled": "was cancelled"}
    words |= {"passed": "was archived"}
    line = f"the last run {words[before.verdict]}: a new one goes on from what is done" if before else ""
    return Next("make", line, "resumed" if before else "submitted")


def submit(backend: Backend, wanted: Wanted, package: Package, say: Say) -> tuple[Outcome, Run]:
    """Take steps until the round is on its way; its run. Raises UserError when it can't be."""
    made, said, silent, until = "", "", 0, time.monotonic() + PATIENCE
    while True:
        step = next_step(wanted, look(backend, wanted.round, made), made)
        for run in step.stop:
            backend.terminate(run.id)
            say(f"run {run.id} is cancelled: another one was there first")
        if step.kind == "refuse":
            raise UserError(step.line, where=backend.endpoint)
        if step.line and step.line != said:
            say(step.line)
            said = step.line
        if step.kind == "end":
            assert step.run
            return step.outcome, step.run
        if step.kind == "wait":
            if time.monotonic() > until:
                raise UserError(f"{step.line}, for {PATIENCE:.0f} s: the UI can terminate it", where=backend.endpoint)
            time.sleep(LOOK)
            continue
        try:
            where = _places(backend, wanted, package, say)
            made = backend.make_run(wanted.name, *where, wanted.parameters).id
        except (NoAnswer, There) as error:  # whether it was made is seen in the next round
            silent += 1
            if silent == TRIES:
                raise
            say(f"{error}; looking again")
        time.sleep(SETTLE)


def look(backend: Backend, round: str, made: str = "") -> list[Run]:
    """The runs of a round, the oldest first; those that succeeded with their tasks, which say what succeeded."""
    runs = backend.runs(round)
    if made and all(run.id != made for run in runs):  # a list that is late must not make it twice
        runs = sorted([*runs, backend.run(made)], key=lambda run: (run.created, run.id))
    return [backend.run(run.id) if run.state == "SUCCEEDED" and not run.archived else run for run in runs]


def newest(backend: Backend, round: str) -> Run:
    """The run of a round that matters, with its tasks: one that goes on, else the last. Raises UserError."""
    runs = backend.runs(round)
    if not runs:
        there = ", ".join(sorted({run.round for run in backend.runs()})) or "none"
        raise UserError(f'no run of a round "{round}"; rounds are: {there}', where=backend.endpoint)
    return backend.run(next((run for run in runs if run.active), runs[-1]).id)


def wait(backend: Backend, id: str, say: Say) -> None:
    """Tell how it goes until the run has ended; raise what it ended with."""
    said = ""
    while True:
        run = _read(backend, id, say)
        states = [(task.name, task.state) for task in run.tasks]
        if str(states) + run.state != said:
            say(render(run, backend.url(id)).rstrip())
            said = str(states) + run.state
        if run.verdict != "running":
            if error := problem(run):
                raise error
            return
        time.sleep(LOOK)


def cancel(
    backend: Backend, round: str, settings: Kubernetes | None, context: str | None, waits: bool, say: Say
) -> bool:
    """End the runs of a round, and take what they put on the cluster off it. False when there was nothing.

    KFP does not tell the containers of a run that it is terminated, and its exit task does not run then.
    """
    runs = backend.runs(round)
    going = [run for run in runs if not run.finished and run.verdict == "running"]
    for run in going:
        backend.terminate(run.id)
        say(f"run {run.id} is asked to end")
    freed = _free(runs, settings, context, bool(going), say)
    if not waits:
        return bool(going) or freed
    until = time.monotonic() + PATIENCE
    for run in going:
        while (now := _read(backend, run.id, say)).verdict == "running":
            if time.monotonic() > until:
                raise StageFailed(
                    f"{round}: run {run.id} was asked to end, and is {now.state or 'PENDING'} after {PATIENCE:.0f} s; "
                    "its workflow can be deleted: kubectl delete workflow --selector "
                    f"pipeline/runid={run.id}"
                )
            time.sleep(LOOK)
    if going:
        _free(runs, settings, context, False, say)  # a step that was not told may have put it there again
    return bool(going) or freed


def _places(backend: Backend, wanted: Wanted, package: Package, say: Say) -> tuple[str, str, str]:
    """The ids of the experiment, the pipeline and its version; each is made where it is not there."""
    if (experiment := backend.experiment(wanted.experiment)) is None:
        _make(lambda: backend.make_experiment(wanted.experiment))
        experiment = backend.experiment(wanted.experiment)
    if (pipeline := backend.pipeline(NAME)) is None:
        _make(lambda: backend.make_pipeline(NAME, "A round of Caspi: from data to a verdict"))
        pipeline = backend.pipeline(NAME)
    version = backend.version(pipeline, package.version) if pipeline else None
    if pipeline and version is None:
        _make(lambda: backend.make_version(pipeline, package.version, package.path))
        version = backend.version(pipeline, package.version)
        if version:
            say(f"uploaded {package.path} as {package.version}")
    if not (experiment and pipeline and version):
        raise NoAnswer("what was just made is not listed yet", where=backend.endpoint)
    return experiment, pipeline, version


def _read(backend: Backend, id: str, say: Say) -> Run:
    """A run; a backend that is away for a while, as when it is upgraded, does not end the waiting."""
    said, until = "", time.monotonic() + PATIENCE
    while True:
        try:
            return backend.run(id)
        except NoAnswer as error:
            if time.monotonic() > until:
                raise
            if str(error) != said:
                say(f"{error}; waiting")
                said = str(error)
        time.sleep(LOOK)


def _make(work: Callable[[], object]) -> None:
    """Somebody else may have made it since; and an answer that is lost says nothing."""
    try:
        work()
    except (There, NoAnswer):
        time.sleep(SETTLE / 3)


def _other(wanted: Wanted, run: Run) -> str:
    out = f"cancel it with `caspi cancel {wanted.round} --to kfp`" if run.active else "archive that run in the UI"
    return (
        f"{wanted.round} is {'there' if run.active else 'done'} already with another round ({run.digest[:8]}, not "
        f"{wanted.digest[:8]}; run {run.id}): give the changed round a new name, or {out}"
    )


def _free(runs: list[Run], settings: Kubernetes | None, context: str | None, unsure: bool, say: Say) -> bool:
    """Take the PyTorchJob of one of these runs off the cluster."""
    run = next((run for run in reversed(runs) if run.parameters.get("train_by") == "helm"), None)
    if run is None or run.verdict == "passed":  # its job has ended, and holds no GPU
        return False
    spec, cluster = _files(run, settings, context)
    kubernetes = cluster.kubernetes or Kubernetes()
    try:
        api = connect(kubernetes.context, kubernetes.namespace)
        job = api.get(f"{PYTORCHJOBS}/{spec.round}")
    except NotFound:
        return False
    except UserError as error:
        done = "its run is asked to end, but " if unsure else ""
        raise UserError(f"{done}whether its PyTorchJob is on the cluster can't be seen: {error}") from None
    owner = (job["metadata"].get("labels") or {}).get(RUN, "")
    if owner not in (*(one.id for one in runs), FREED):
        return False
    return free(spec, cluster, run.id if owner == FREED else owner, say)


def _files(run: Run, settings: Kubernetes | None, context: str | None) -> tuple[RoundSpec, ClusterSpec]:
    """What the run was given; the cluster is reached as this machine reaches it."""
    where = f"run {run.id}"
    try:
        spec = parse(yaml.safe_load(str(run.parameters.get("round"))), RoundSpec, where)
        cluster = parse(yaml.safe_load(str(run.parameters.get("cluster"))), ClusterSpec, where)
    except yaml.YAMLError:
        raise UserError("was not made by this version of Caspi: its parameters can't be read", where=where) from None
    kubernetes = cluster.kubernetes or Kubernetes()
    chosen = context or (settings.context if settings else None)
    return spec, cluster.model_copy(update={"kubernetes": kubernetes.model_copy(update={"context": chosen})})
