"""A stage reads records, calls the library, writes a record. This is the part that all stages share."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from caspi.errors import CaspiError, Preempted, StageFailed, UserError
from caspi.files import file_digest, no_space_left
from caspi.records.record import Circumstances, Record, StageName, write_record
from caspi.records.round_dir import RoundDir

LOCK_SECONDS = 30.0  # a killed run's last process needs a moment to go
PACKAGES = ("caspi", "numpy", "pyarrow", "soundfile", "soxr", "torch", "transformers", "qwen-asr", "jiwer")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage made and found."""

    results: BaseModel
    outputs: list[str] = field(default_factory=list)
    """Files of the stage's folder that the record pins by sha256. Equal work gives equal bytes."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Measurements of this run that may differ the next time."""
    shown: list[str] = field(default_factory=list)
    """Files that tell of circumstances themselves (the report): pinned beside them, not among the outputs."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: a name, what it reads, what it does."""

    name: StageName
    inputs: Callable[[RoundDir], Mapping[str, str]]
    """sha256 of everything that decides the outcome, by name; raises UserError when something is missing."""
    work: Callable[[RoundDir], Outcome]
    """Idempotent and resumable: killed at any moment and called again, it ends in the same outputs."""


class Occupied(UserError):
    """Another process holds the lock of the round directory."""


@contextmanager
def alone(round_dir: RoundDir) -> Iterator[None]:
    """Hold the lock of a round directory: two runs of the same round at once would spoil each other's files."""
    if not is_leader():
        yield
        return
    with (round_dir.path / ".lock").open("a+") as lock:
        patience = time.monotonic() + LOCK_SECONDS
        while not _locked(lock):
            if time.monotonic() > patience:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise Occupied(f"{owner} is at work on this round; wait for it or end it", where=str(round_dir.path))
            time.sleep(0.1)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def perform(stage: Stage, round_dir: RoundDir) -> tuple[Record, bool]:
    """Run a stage unless its record says that it succeeded on the same inputs.

    Returns the record, and whether any work was done. What is done is only read, also while another process is at
    work on a later stage. A CaspiError leaves a failed record and is raised on; Preempted and UserError leave none:
    nothing is known yet about the stage itself.
    """
    before = round_dir.record(stage.name)
    if before and before.status == "succeeded" and _stands(before, stage.inputs(round_dir), round_dir):
        return before, False
    try:
        with alone(round_dir):
            return _perform(stage, round_dir)
    except OSError as error:
        if not no_space_left(error):
            raise
        raise StageFailed(
            f"no space left on {error.filename or round_dir.path}: stage {stage.name} is not recorded; "
            "free some space or enlarge the claim, then run the same again"
        ) from None


def _perform(stage: Stage, round_dir: RoundDir) -> tuple[Record, bool]:
    folder = round_dir.folder(stage.name)
    inputs = dict(stage.inputs(round_dir))
    before = round_dir.record(stage.name)
    if before and _stands(before, inputs, round_dir):
        return before, False
    if is_leader():
        (folder / "record.json").unlink(missing_ok=True)
    started, clock = datetime.now(UTC), time.monotonic()

    def record(status: Any, outcome: Outcome | None, error: str | None) -> Record:
        return Record(
            stage=stage.name,
            status=status,
            round=round_dir.spec.round,
            spec=round_dir.spec.digest,
            seed=round_dir.spec.seed,
            inputs=inputs,
            outputs={name: file_digest(folder / name) for name in outcome.outputs} if outcome else {},
            results=outcome.results.model_dump(mode="json") if outcome else {},
            error=error,
            circumstances=Circumstances(
                started=started.isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - clock, 3),
                host=platform.node(),
                git=_git_revision(),
                versions=_versions(),
                figures=outcome.figures if outcome else {},
                outputs={name: file_digest(folder / name) for name in outcome.shown} if outcome else {},
            ),
        )

    try:
        outcome = stage.work(round_dir)
    except (UserError, Preempted):
        raise
    except CaspiError as error:
        # by whichever rank fails: the leader may only have noticed that one is gone
        try:
            write_record(folder / "record.json", record("failed", None, str(error)))
        except OSError as full:  # what the error may be about
            if not no_space_left(full):
                raise
        raise error
    done = record("succeeded", outcome, None)
    if is_leader():
        write_record(folder / "record.json", done)
    return done, True


def is_leader() -> bool:
    """Of several training processes only rank 0 writes the record of what was done."""
    return os.environ.get("RANK", "0") == "0"


def _stands(record: Record, inputs: Mapping[str, str], round_dir: RoundDir) -> bool:
    """Whether the stage succeeded on these inputs, and every output is still there. Contents are trusted: digesting all
    of them costs as much as some stages."""
    outputs, folder = (*record.outputs, *record.circumstances.outputs), round_dir.folder(record.stage)
    return (
        record.status == "succeeded" and record.inputs == inputs and all((folder / name).exists() for name in outputs)
    )


def _git_revision() -> str | None:
    """Of the checkout that this file lies in; of an installed wheel what CASPI_REVISION says, which images set."""
    try:
        run = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("CASPI_REVISION")
    return run.stdout.strip()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
