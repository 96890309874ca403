"""What a training pod says of itself where Kubernetes keeps it: a line of its log while it trains, and a last message.

Pods write them, `caspi status` reads them: a cluster's users can read logs and pod statuses, not the round's disk.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

MOST_BYTES = 4096
"""Kubernetes keeps so much of a termination message."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Where training stands."""

    step: int
    steps: int
    """In all."""
    loss: float | None = None
    checkpoint: int | None = None
    """Step of the newest whole checkpoint."""
    saved: str | None = None
    """When, as 2026-11-21T15:00:00Z."""

    def line(self) -> str:
        """As it stands in the log: for people, and for `parse_heartbeat`."""
        loss = f", loss {self.loss:.4f}" if self.loss is not None else ""
        checkpoint = f", checkpoint of step {self.checkpoint:,} at {self.saved}" if self.checkpoint is not None else ""
        return f"step {self.step:,} of {self.steps:,}{loss}{checkpoint}"


_LINE = re.compile(
    r"step (?P<step>[\d,]+) of (?P<steps>[\d,]+)(?:, loss (?P<loss>[-\w.]+))?"
    r"(?:, checkpoint of step (?P<checkpoint>[\d,]+) at (?P<saved>\S+))?$"
)


def parse_heartbeat(line: str) -> Heartbeat | None:
    """The heartbeat at the end of a line of a log; None when it is another line."""
    match = _LINE.search(line.strip())
    if not match:
        return None
    whole = {
        name: int(match[name].replace(",", "")) if match[name] else None for name in ("step", "steps", "checkpoint")
    }
    assert whole["step"] is not None and whole["steps"] is not None, "the pattern requires them"
    loss = float(match["loss"]) if match["loss"] else None
    return Heartbeat(whole["step"], whole["steps"], loss, whole["checkpoint"], match["saved"])


@dataclass(frozen=True, slots=True)
class LastMessage:
    """How a training pod ended: its termination message, as JSON."""

    code: int
    """Of docs/exit-codes.md, before it is mapped to what the training operator understands."""
    line: str
    step: int | None = None
    checkpoint: int | None = None
    """Step of the newest whole checkpoint."""

    def text(self) -> str:
        """At most MOST_BYTES of JSON."""
        values = asdict(self)
        text = json.dumps(values, ensure_ascii=True)
        if len(text) > MOST_BYTES:
            values["line"] = self.line[: (MOST_BYTES - 200) // 6] + " ..."
            text = json.dumps(values, ensure_ascii=True)
        return text


def parse_last_message(text: str | None) -> LastMessage | None:
    """None when there is none, or another program's."""
    try:
        values = json.loads(text or "")
        return LastMessage(int(values["code"]), str(values["line"]), values.get("step"), values.get("checkpoint"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
