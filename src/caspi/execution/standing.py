"""Where training stands, from what it writes to the round's disk: for a pod's heartbeat, metrics and last message."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from caspi.records.heartbeat import Heartbeat
from caspi.records.metrics import metric_lines

LOOK_SECONDS = 1.0
HEARTBEAT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Nothing yet, where everything is empty."""

    last: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The last line of metrics.jsonl of each kind: train, dev, forecast, ..."""
    seconds: float | None = None
    """Spent on training."""
    warnings: tuple[str, ...] = ()
    """Their names."""
    checkpoint: int | None = None
    saved: float | None = None
    """When the newest whole checkpoint was written, Unix time."""

    @property
    def step(self) -> int | None:
        train = self.last.get("train")
        return int(train["step"]) if train else self.checkpoint

    def heartbeat(self) -> Heartbeat | None:
        train = self.last.get("train", {})
        if "steps" not in train:
            return None
        saved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.saved)) if self.saved is not None else None
        return Heartbeat(train["step"], train["steps"], train.get("loss"), self.checkpoint, saved)


def standing(folder: Path) -> Standing:
    """Read the train folder of a round; a step that is logged and lost again counts until it is taken anew."""
    lines = metric_lines(folder / "metrics.jsonl")
    timed = [line["seconds"] for line in lines if isinstance(line.get("seconds"), int | float)]
    checkpoint, saved = newest(folder)
    return Standing(
        last={line["kind"]: line for line in lines},
        seconds=timed[-1] if timed else None,
        warnings=tuple(str(line.get("name")) for line in lines if line["kind"] == "warning"),
        checkpoint=checkpoint,
        saved=saved,
    )


def newest(folder: Path) -> tuple[int | None, float | None]:
    """The step of the newest whole checkpoint and when it was written, by the pointer: two small reads."""
    try:
        name = (folder / "latest").read_text(encoding="utf-8").strip()
        saved = (folder / "checkpoints" / name / "checkpoint.json").stat().st_mtime
        return int(name.removeprefix("step-")), saved
    except (OSError, ValueError):
        return None, None


def heartbeats(folder: Path, leads: Callable[[], bool], say: Callable[[str], None], over: Event) -> None:
    """Until `over`: a line when the step has changed, every HEARTBEAT_SECONDS, and at each new checkpoint."""
    shown: tuple[int | None, int | None] = (None, None)
    due = 0.0
    while not over.wait(LOOK_SECONDS):
        now = time.monotonic()
        if not leads() or (now < due and newest(folder)[0] == shown[1]):
            continue
        due = now + HEARTBEAT_SECONDS
        stands = standing(folder)
        beat = stands.heartbeat()
        if beat and (beat.step, beat.checkpoint) != shown:
            say(beat.line())
        shown = (beat.step if beat else None, stands.checkpoint)
