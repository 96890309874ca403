"""Everything before GPUs: export, audit and gate, by a leader and any number of assistants on other machines."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from caspi.audit.gate import approve, check_gate
from caspi.errors import CaspiError, GateRefused, Preempted, UserError
from caspi.records.record import Record
from caspi.records.results import AuditResults
from caspi.records.round_dir import RoundDir, create, open_round, round_path
from caspi.spec import RoundSpec, load_cluster, load_round
from caspi.stages import audit, export
from caspi.stages.sharing import beating, open_boards
from caspi.stages.stage import Occupied, Stage, perform
from caspi.status import summary

SHARED: tuple[tuple[Stage, Callable[[RoundDir], None]], ...] = (
    (export.STAGE, export.assist),
    (audit.STAGE, audit.assist),
)
"""Stages whose work is shared, and how an assistant takes part."""
LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 900.0
"""An assistant ends when there is no sign of a leader for so long: it may not have started, or it failed."""


@dataclass(frozen=True, slots=True)
class Approval:
    """Who signs a CAUTION, why, and of which audit: at least 12 digits of its digest."""

    by: str
    reason: str
    audit: str


def load_same(file: Path, digest: str) -> RoundSpec:
    """The round in a file; UserError when it digests to something else than is expected here."""
    spec = load_round(file)
    if spec.digest != digest:
        raise UserError(
            f"it digests to {spec.digest[:12]}, and --digest is {digest[:12]}: the release has the digest of another "
            "round; install the round anew with `caspi submit`",
            where=str(file),
        )
    return spec


def adopt(file: Path, cluster: Path, runs: Path, digest: str) -> RoundDir:
    """Make or adopt the directory of exactly this round. Any number of processes may do so at once."""
    return create(runs, load_same(file, digest), load_cluster(cluster), file.parent)


def prepare(round_dir: RoundDir, approval: Approval | None, say: Callable[[str], None]) -> None:
    """Export, audit and gate; what is done already is not done again. Returns when training may start.

    Raises GateRefused with the command that signs, and whatever the stages raise.
    """
    with beating({round_dir.path / ".lock"}):
        for stage, _ in SHARED:
            record, worked = _performed(stage, round_dir, say)
            say(f"{stage.name:<7} {summary(record)}{'' if worked else ' (done before)'}")
        pass_gate(round_dir, approval)
        say("gate    passed")


def pass_gate(round_dir: RoundDir, approval: Approval | None) -> None:
    """Pass the gate, if need be by signing a CAUTION: an approval counts for the audit that it names, and no other."""
    record = round_dir.succeeded("audit")
    sign = (
        f"caspi submit rounds/{round_dir.spec.round}.yaml --cluster ... --approve-by NAME "
        f'--approve-reason "..." --approve-audit {record.digest[:12]}'
    )
    try:
        check_gate(round_dir, sign)
        return
    except GateRefused:
        if approval is None:
            raise
    found = AuditResults.model_validate(record.results)
    if found.decision == "CAUTION" and not record.digest.startswith(approval.audit):
        raise GateRefused(
            f"the audit says CAUTION: {'; '.join(found.reasons)}; the approval given ({approval.audit[:12]}) is of "
            f"another audit; look at the findings, then run `{sign}`"
        )
    approve(round_dir, approval.by, approval.reason)
    check_gate(round_dir, sign)


def assist(file: Path, runs: Path, digest: str) -> str:
    """Take parts of the export and of the audit until the audit is done; why it ended, in a line.

    Writes nothing but parts. Where it can't help it says why and ends: the leader does everything alone, if need be.
    """
    path = round_path(runs, load_same(file, digest))
    leader = _Leader(path)
    while not (path / "cluster.yaml").is_file():
        if not leader.shows():
            return "no leader came"
        time.sleep(LOOK_SECONDS)
    try:
        round_dir = open_round(path)
        for stage, work in SHARED:
            if problem := _assist(round_dir, stage, work, leader):
                return problem
    except Preempted:
        raise
    except CaspiError as error:
        return f"can't help here: {error}"
    return "the audit is done"


def end_when_asked() -> None:
    """SIGTERM ends this process as Preempted, also where it is the first one of its container."""

    def asked(_number: int, _frame: FrameType | None) -> None:
        raise Preempted("asked to stop; the same command goes on where it stopped")

    signal.signal(signal.SIGTERM, asked)


def _performed(stage: Stage, round_dir: RoundDir, say: Callable[[str], None]) -> tuple[Record, bool]:
    """`perform`, as soon as no other process is at work on the round: an earlier pod may still be ending."""
    while True:
        try:
            return perform(stage, round_dir)
        except Occupied as error:
            say(f"{error}: waiting")


def _assist(round_dir: RoundDir, stage: Stage, work: Callable[[RoundDir], None], leader: _Leader) -> str | None:
    """Take parts of one stage until its record is there; why not, if not."""
    at_first = known = round_dir.record(stage.name)
    tried: set[str] = set()
    looked = False
    while True:
        record = round_dir.record(stage.name)
        if record != known or not looked:
            known, looked = record, True
            if record and record.status == "failed" and record != at_first:
                return f"the {stage.name} failed"
            if record and record.status == "succeeded" and record.inputs == dict(stage.inputs(round_dir)):
                return None
        boards = open_boards(round_dir.folder(stage.name)) - tried
        if boards:
            tried |= boards
            work(round_dir)
        elif not leader.shows():
            return "no sign of the leader any more"
        else:
            time.sleep(LOOK_SECONDS)


@dataclass(slots=True)
class _Leader:
    """Signs of life of whoever prepares the round in `path`, by this machine's clock."""

    path: Path
    signs: object = None
    since: float = field(default_factory=time.monotonic)

    def shows(self) -> bool:
        """Whether there was any sign within PATIENCE_SECONDS."""
        signs = [_written(self.path / name) for name in (".lock", "export/record.json", "audit/record.json")]
        if signs != self.signs:
            self.signs, self.since = signs, time.monotonic()
        return time.monotonic() - self.since < PATIENCE_SECONDS


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
