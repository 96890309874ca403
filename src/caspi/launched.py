"""What passes between an agent and the training processes that it starts: their place in the world, their last words.

The variables are torchrun's, so that a training process works under either.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from caspi.orphans import die_with_parent

RUN_ID, ERROR_FILE, AGENT = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE", "CASPI_AGENT"


@dataclass(frozen=True, slots=True)
class World:
    """All training processes between two changes of membership, as one node sees them."""

    name: str
    node: int
    """This node among `nodes`."""
    nodes: int
    processes: int
    """On each node."""
    address: str
    """Where rank 0 is, and a free port there."""
    port: int

    @property
    def size(self) -> int:
        return self.nodes * self.processes

    def rank(self, local: int) -> int:
        return self.node * self.processes + local

    def environment(self, local: int, last_words: Path) -> dict[str, str]:
        """What the training process with this number on this node finds in its environment."""
        return {
            "RANK": str(self.rank(local)),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "GROUP_RANK": str(self.node),
            "GROUP_WORLD_SIZE": str(self.nodes),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            RUN_ID: self.name,
            ERROR_FILE: str(last_words),
            AGENT: str(os.getpid()),
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """How training processes ended: one of docs/exit-codes.md, and the line that says why."""

    code: int
    line: str = ""


def is_launched() -> bool:
    """Whether this is a training process that an agent started (ours, or torchrun's)."""
    return RUN_ID in os.environ


def die_with_agent() -> None:
    """An agent that is killed takes its training processes along."""
    if is_launched():
        agent = os.environ.get(AGENT)
        die_with_parent(int(agent) if agent else None)


def tell_agent(line: str) -> bool:
    """Leave the agent a last line, which it shows once for all ranks; False where there is none to tell."""
    path = os.environ.get(ERROR_FILE)
    if path is None or not is_launched():
        return False
    try:
        Path(path).write_text(json.dumps({"message": line, "timestamp": int(time.time())}), encoding="utf-8")
    except OSError:  # a full disk may be what the line is about
        return False
    return True


def last_words(path: Path) -> str:
    """What a training process left there."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
