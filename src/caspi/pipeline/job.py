"""Training by a PyTorchJob: put on the cluster, or adopted there; followed to its end; taken off with its run.

The job outlives whoever watches it. A watcher that is drained or killed leaves it alone, and the next one adopts it.
Only `free` takes it off, and only from the run that was the last to ask for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from caspi.audit.gate import check_gate
from caspi.errors import StageFailed, Unanswered, UserError
from caspi.execution.start import change, check_same_round
from caspi.execution.surroundings import is_trained
from caspi.files import file_digest, read_json, write_json
from caspi.fleet.api import PYTORCHJOBS, Api, Changed, NotFound, Object, connect
from caspi.fleet.cancel import cancel
from caspi.fleet.chart import chart_folder
from caspi.fleet.diagnose import Diagnosis
from caspi.fleet.helm import Helm, find_helm
from caspi.fleet.logs import MOST, follow_logs
from caspi.fleet.objects import holds
from caspi.fleet.refusals import OutOfReach
from caspi.fleet.submit import submit, verdict
from caspi.fleet.values import train_values
from caspi.records.record import Record
from caspi.records.round_dir import RoundDir
from caspi.spec import ClusterSpec, RoundSpec

Say = Callable[[str], None]
Answer = TypeVar("Answer")
RUN = "caspi.dev/pipeline-run"
"""Label of a PyTorchJob: the run that asked for it last."""
ASKING = ".pipeline/job.json"
"""In the round directory: the run that asks for the job. Helm makes it without a label, which comes a moment later."""
FREED = "freed"
"""Its value once a run has given the job up: nobody adopts it any more."""
PATIENCE = 1800.0
"""Seconds for which a cluster that does not answer is waited for."""
LOOK_SECONDS = 5.0
GONE_SECONDS = 30.0
"""A job that failed is deleted and made anew by whoever submits it again: so long it may be missing."""
RECORD_SECONDS = 90.0
"""A shared disk shows what another machine wrote a little later."""


def train_by_helm(round_dir: RoundDir, run: str, say: Say) -> None:
    """Train a round as the PyTorchJob that charts/caspi-train makes, as `caspi submit` does; return when its record is
    there. Data is prepared already, so the job starts at once; its workers check the gate again.

    Raises GateRefused, what the job ended with, Unanswered when the cluster stays silent, and UserError. Whatever ends
    this process leaves the job alone.
    """
    check_gate(round_dir)
    if _trained(round_dir):
        say("trained already, on the same data: nothing to do")
        return
    place = Place.of(round_dir.cluster)
    name = round_dir.spec.round
    values = {**train_values(round_dir.spec, round_dir.cluster, where="cluster"), "preparation": {"enabled": False}}
    _patiently(lambda: _make_way(place, round_dir, say), say)
    write_json(round_dir.path / ASKING, {"run": _label(run)})
    _patiently(lambda: _submit(place, round_dir.spec, values, run, say), say)
    ended = _follow(place, name, round_dir.cluster.nodes, say)
    if problem := verdict(ended):
        raise problem
    _wait_for_record(round_dir)


def free(spec: RoundSpec, cluster: ClusterSpec, run: str, say: Say, round_dir: Path | None = None) -> bool:
    """Take the job off the cluster, with its pods and its release, when this run was the last to ask for it and it has
    not ended. Checkpoints stay. False when there was nothing to do.

    With its directory also one that this run put there and was killed before it could write its name on it.
    """
    if cluster.kubernetes is None:
        return False
    place = Place.of(cluster)
    owners = {_label(run), FREED}
    if round_dir and _asking(round_dir) == _label(run):
        owners.add("")
    if not _patiently(lambda: _give_up(place.api, spec.round, owners, say), say):
        return False
    return _patiently(lambda: cancel(place.api, place.helm, spec.round, True, say), say)


@dataclass(frozen=True, slots=True)
class Place:
    """The namespace where the job goes."""

    api: Api
    helm: Helm
    queue: str | None = None

    @classmethod
    def of(cls, cluster: ClusterSpec) -> Place:
        kubernetes = cluster.kubernetes
        if kubernetes is None:
            raise UserError("kubernetes: missing; it says in which namespace the job goes", where="cluster")
        api = connect(kubernetes.context, kubernetes.namespace)
        return cls(api, find_helm(api.namespace, api.context), kubernetes.queue)

    def job(self, name: str) -> Object | None:
        try:
            return self.api.get(f"{PYTORCHJOBS}/{name}")
        except NotFound:
            return None


def _trained(round_dir: RoundDir) -> bool:
    """Whether a model is there that was trained on what is exported and audited now."""
    record = round_dir.record("train")
    return record is not None and is_trained(round_dir) and _same_data(record, round_dir)


def _same_data(record: Record, round_dir: RoundDir) -> bool:
    """As far as it can be told without torch: what is missing of `caspi.stages.train.inputs` is the base where it is
    not a round's, and that is pinned by the spec."""
    export, audit, parent = round_dir.succeeded("export"), round_dir.succeeded("audit"), round_dir.parent()
    approval = round_dir.folder("audit") / "approval.json"
    now = {f"export/{name}": sha for name, sha in export.outputs.items()} | {"audit": audit.digest}
    now["audit/approval.json"] = file_digest(approval) if approval.exists() else ""
    if parent is not None:
        now["base"] = parent.succeeded("train").digest
    return all(now.get(name, sha) == sha for name, sha in record.inputs.items())


def _make_way(place: Place, round_dir: RoundDir, say: Say) -> None:
    """A job that has succeeded stays on the cluster. Where its model is gone, or of other data, it is in the way."""
    name = round_dir.spec.round
    job = place.job(name)
    if job is None or not holds(job, "Succeeded"):
        return
    check_same_round(job, round_dir.spec.digest, f"pytorchjob {place.api.namespace}/{name}")
    if _comes(lambda: round_dir.record("train") is not None, RECORD_SECONDS) and _trained(round_dir):
        return
    say(f"PyTorchJob {name} has succeeded, but {round_dir.path} has no model of what is exported now: once more")
    cancel(place.api, place.helm, name, True, say)
    (round_dir.folder("train") / "record.json").unlink(missing_ok=True)


def _submit(place: Place, spec: RoundSpec, values: dict[str, Any], run: str, say: Say) -> None:
    """See that the job is there, runs, and bears the name of this run."""
    while True:
        try:
            outcome = submit(place.api, place.helm, chart_folder(), values, say)
            owned = _own(place, spec.round, _label(run))
        except NotFound:  # deleted at this very moment
            continue
        if owned:
            say(f"{spec.round}: {outcome}, {place.api.where}; `caspi status {spec.round} --to helm` says more")
            return
        say(f"another run takes {spec.round} off the cluster: waiting until it is gone")
        if not _comes(lambda: place.job(spec.round) is None, GONE_SECONDS):
            cancel(place.api, place.helm, spec.round, True, say)  # that run was killed in the middle of it


def _own(place: Place, name: str, label: str) -> bool:
    """Write the run on the job, and let it go if it still waits for a preparation of its own. False when a run is
    taking it off. Raises NotFound."""
    while True:
        job = place.api.get(f"{PYTORCHJOBS}/{name}")
        if _run_of(job) == FREED:
            return False
        more = change(job, place.queue) or {}
        labels = {**more.get("metadata", {}).get("labels", {}), RUN: label}
        try:
            place.api.patch(f"{PYTORCHJOBS}/{name}", job, {**more, "metadata": {"labels": labels}})
        except Changed:
            continue  # the operator writes too
        return True


def _asking(round_dir: Path) -> str:
    try:
        return str(read_json(round_dir / ASKING)["run"])
    except (UserError, OSError, KeyError, TypeError):
        return ""


def _give_up(api: Api, name: str, owners: set[str], say: Say) -> bool:
    """Whether the job is this run's to take off; no other run adopts it from here on."""
    while True:
        try:
            job = api.get(f"{PYTORCHJOBS}/{name}")
            owner = _run_of(job)
            if holds(job, "Succeeded") or holds(job, "Failed"):
                return False  # it holds no GPU; why it failed is still to be read
            if owner not in owners:
                say(f"PyTorchJob {name} is {f'of run {owner}' if owner else 'of no run'}: it stays")
                return False
            api.patch(f"{PYTORCHJOBS}/{name}", job, {"metadata": {"labels": {RUN: FREED}}})
        except NotFound:
            return False
        except Changed:
            continue
        return True


def _follow(place: Place, name: str, nodes: int, say: Say) -> Diagnosis:
    """How the job ended, by its conditions alone; its logs go to `say` meanwhile."""
    worker = None if 2 * nodes <= MOST else 0  # each has two containers
    while True:
        try:
            for line in follow_logs(place.api, name, worker, None, PATIENCE):
                if isinstance(line, Diagnosis):
                    return line
                say(f"{line.label} | {line.text}")
        except OutOfReach as error:
            raise Unanswered(f"{error}; for {PATIENCE:.0f} s. The job goes on without this step") from None
        if not _patiently(lambda: _comes(lambda: place.job(name) is not None, GONE_SECONDS), say):
            raise StageFailed(
                f"PyTorchJob {name} is gone from {place.api.where}: was it cancelled? Its checkpoints are on the "
                "claim: run the pipeline again to go on from the last one"
            )


def _wait_for_record(round_dir: RoundDir) -> None:
    if not _comes(lambda: _trained(round_dir), RECORD_SECONDS):
        raise StageFailed(
            f"PyTorchJob {round_dir.spec.round} has succeeded, but {round_dir.folder('train')} has no record of it: do "
            "this step and the job mount the same disk? See kubernetes.storage.claim in the cluster file"
        )


def _comes(test: Callable[[], bool], seconds: float) -> bool:
    """Whether it gets true within so many seconds."""
    until = time.monotonic() + seconds
    while not test():
        if time.monotonic() > until:
            return False
        time.sleep(min(LOOK_SECONDS, seconds / 10))
    return True


def _patiently(call: Callable[[], Answer], say: Say) -> Answer:
    """Again and again while the cluster does not answer: what is called takes up what was begun."""
    until, said = time.monotonic() + PATIENCE, ""
    while True:
        try:
            return call()
        except OutOfReach as error:
            if time.monotonic() > until:
                raise Unanswered(f"{error}; for {PATIENCE:.0f} s") from None
            if str(error) != said:
                say(f"{error}; waiting")
                said = str(error)
        time.sleep(LOOK_SECONDS)


def _run_of(job: Object) -> str:
    return str((job["metadata"].get("labels") or {}).get(RUN, ""))


def _label(run: str) -> str:
    """As a label's value may be."""
    return re.sub(r"[^\w.-]", "-", run, flags=re.ASCII)[-63:].strip("-._")
