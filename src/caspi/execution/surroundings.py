"""What an agent asks of the place where it runs: nothing, a round directory, or a pod (execution/worker.py)."""

from __future__ import annotations

from caspi.launched import Ended, World
from caspi.records.round_dir import RoundDir


class Surroundings:
    """There is nothing to know, and nobody who listens."""

    def done(self) -> bool:
        """Whether the work is known to be done, when the other nodes can't be asked any more."""
        return True

    def stands_at(self) -> str:
        """Changes when the work gets on: what a life of the training processes leaves behind."""
        return ""

    def begins(self, world: World) -> None:
        """Training processes are about to start."""

    def due(self) -> Ended | None:
        """Asked all the time: how the work has to end now, though its processes could go on."""
        return None

    def out_of_memory(self) -> str:
        """Whether the kernel took a process of this life for want of memory, in words; empty when it did not."""
        return ""

    def begins_again(self, reason: str) -> None:
        """Another life follows: after a crash, a hang, or a change of membership."""


class OnDisk(Surroundings):
    """The round directory tells."""

    def __init__(self, round_dir: RoundDir) -> None:
        self.round_dir = round_dir

    def done(self) -> bool:
        return is_trained(self.round_dir)

    def stands_at(self) -> str:
        try:
            return (self.round_dir.folder("train") / "latest").read_text(encoding="utf-8").strip()
        except OSError:
            return ""


def is_trained(round_dir: RoundDir) -> bool:
    """Whether training has succeeded, by its record. Whether its inputs are still the same is the stage's to say."""
    record = round_dir.record("train")
    return record is not None and record.status == "succeeded" and record.spec == round_dir.spec.digest
