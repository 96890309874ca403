"""When a GPU runs out of memory: a smaller cap on micro-batches, the same global batches.

The estimate of `caspi plan` chooses the cap. The worst micro-batch of a phase runs first, dry, so that an estimate
that was too bold shows in the first minute. Each time memory runs out the cap shrinks and the same step is taken
again: a loss that does not depend on the split does not notice.
"""

from __future__ import annotations

from pathlib import Path

from caspi.errors import CaspiError, StageFailed, UserError
from caspi.files import read_json, write_json
from caspi.training.data import Order, Orders

STEP_DOWN = 0.75
FILE = "memory.json"


class ShortOfMemory(CaspiError):
    """A micro-batch did not fit. Nothing has moved."""

    def __init__(self, together: bool) -> None:
        super().__init__("a micro-batch did not fit in memory")
        self.together = together
        """Whether every process knows: False where the others already wait for this one (sharded weights)."""


def worst(orders: Orders, first: int, last: int) -> Order:
    """This process's micro-batch of the most padded seconds in the steps first..last-1."""
    return max(orders.from_step(first, last), key=lambda order: order.padded)


def lowered(cap: float, longest: float) -> float:
    """The next cap, three quarters of the one that was too much; never less than the longest utterance."""
    if cap <= longest:
        raise StageFailed(
            f"one utterance of {longest:.1f} s alone does not fit in memory; keep shorter ones (data.keep.seconds), "
            "let fewer groups move in train.phases, or use GPUs with more memory"
        )
    return max(STEP_DOWN * cap, longest)


def remember(folder: Path, planned: float, cap: float) -> None:
    """So that a restart does not climb down again."""
    write_json(folder / FILE, {"planned": planned, "padded_seconds": cap})


def remembered(folder: Path, planned: float) -> float:
    """The cap that was found on machines for which the same cap was planned; else the plan's."""
    try:
        values = read_json(folder / FILE)
        if values["planned"] == planned:
            return min(planned, float(values["padded_seconds"]))
    except (UserError, OSError, KeyError, TypeError, ValueError):
        pass
    return planned
