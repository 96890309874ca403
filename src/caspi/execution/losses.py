"""Nodes that only ever lose each other: when to stop trying."""

from __future__ import annotations

from dataclasses import dataclass

from caspi.errors import Preempted, Unanswered
from caspi.launched import Ended

FRUITLESS = 20  # lives of training processes in a row
RETRY = Preempted.exit_code


@dataclass(slots=True)
class Losses:
    """How often in a row nodes have lost each other, and had nothing to show for it."""

    lives: int = 0
    nodes: int = 0
    stands_at: str = ""

    @property
    def too_many(self) -> bool:
        return self.lives >= FRUITLESS

    def judged(self, ended: Ended, nodes: int, stands_at: str) -> Ended:
        """How a life of the training processes has ended. More nodes than ever are no loss: they start one by one."""
        if stands_at != self.stands_at:
            self.lives, self.nodes, self.stands_at = 0, 0, stands_at
        if nodes > self.nodes or ended.code != RETRY:
            self.lives, self.nodes = 0, max(nodes, self.nodes)
        self.lives += ended.code == RETRY
        if not self.too_many:
            return ended
        line = (
            f"nodes were lost {self.lives} times in a row before a new checkpoint (the last: {stands_at or 'none'}); "
            "see what ends them, or save more often (train.keep.every_steps); run the same command to go on"
        )
        return Ended(Unanswered.exit_code, line)
