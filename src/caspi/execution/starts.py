"""What must be remembered when a pod is gone: how often it was started in vain, and when training first began.

    train/first_start.json      when the first pod of the round began to train
    train/starts/<pod>.json     this pod's lives since the newest checkpoint that did not end well

A pod that is killed can't say so; the one that is started in its place finds a life that was begun and not ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from caspi.errors import OutOfBudget, StageFailed, UserError
from caspi.files import read_json, write_json
from caspi.launched import Ended


@dataclass(frozen=True, slots=True)
class Starts:
    """Of one pod. `in_vain` counts lives that ended badly at the same checkpoint, all in a row."""

    checkpoint: str = ""
    in_vain: int = 0
    running: bool = False
    """A life was begun, and nobody has said how it ended."""
    line: str = ""
    """What the last of them said; empty when it could not."""

    def found(self, checkpoint: str) -> Starts:
        """As the next pod finds it: one that was running has been killed, and a newer checkpoint forgives all."""
        if checkpoint != self.checkpoint:
            return Starts(checkpoint)
        return replace(self, in_vain=self.in_vain + 1, running=False, line="") if self.running else self

    def ended(self, checkpoint: str, line: str, badly: bool) -> Starts:
        """A life that said how it ended."""
        before = Starts(checkpoint) if checkpoint != self.checkpoint else self
        return replace(before, running=False, in_vain=before.in_vain + badly, line=line if badly else before.line)

    def spent(self, allowed: int, pod: str) -> Ended | None:
        """How the work ends when `allowed` starts were in vain."""
        if self.in_vain < allowed:
            return None
        since = f"the checkpoint of {as_words(self.checkpoint)}" if self.checkpoint else "the beginning"
        if self.line:
            how = f"to no avail; at last: {self.line}"
        else:
            how = "and was killed each time: out of memory (raise workers.resources.memory), or its node kills it"
        line = f"{pod} was started {self.in_vain} times since {since} {how}. Then submit again (it is retries.starts)"
        return Ended(StageFailed.exit_code, line)


def read_starts(path: Path) -> Starts:
    """None yet where there is no file, or a torn one."""
    try:
        return Starts(**read_json(path))
    except (UserError, OSError, TypeError):
        return Starts()


def write_starts(path: Path, starts: Starts) -> None:
    write_json(path, asdict(starts))


def as_words(checkpoint: str) -> str:
    """ "step-000600" is step 600."""
    number = checkpoint.removeprefix("step-")
    return f"step {int(number):,}" if number.isdecimal() else checkpoint


@dataclass(frozen=True, slots=True)
class Deadline:
    """`seconds` from the first start of the round's training."""

    began: float
    seconds: float

    def due(self, now: float, newest: Callable[[], str]) -> Ended | None:
        """How the work ends at `now`; None before the deadline."""
        if now - self.began < self.seconds:
            return None
        stands_at = newest()
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began))
        at = f"{as_words(stands_at)} is saved" if stands_at else "there is no checkpoint yet"
        line = (
            f"deadline: {self.seconds:,.0f} s since training began at {began}, {at}; "
            "raise `deadline`, then submit again: it goes on from there"
        )
        return Ended(OutOfBudget.exit_code, line)


def deadline(path: Path, seconds: float, now: float) -> Deadline:
    """Counted from what `path` says; the first pod of a round writes it."""
    try:
        return Deadline(float(read_json(path)["began"]), seconds)
    except (UserError, KeyError, TypeError, ValueError):
        write_json(path, {"began": round(now, 3)})  # two pods at once write the same, but for their clocks
        return Deadline(now, seconds)
