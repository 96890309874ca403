"""Whether a container ran out of memory, from the counters of its control group: version 2, or version 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # version 1 writes a number near 2**63 where there is no limit
FILES = (
    ("memory.events", "memory.max", "memory.peak"),
    ("memory/memory.oom_control", "memory/memory.limit_in_bytes", "memory/memory.max_usage_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all processes of the container."""

    kills: int
    """How many the kernel has killed for want of memory."""
    limit: int | None
    """Bytes."""
    most: int | None
    """Bytes in use at most, so far."""


def memory(root: Path = ROOT) -> Memory | None:
    """None where no control group tells."""
    for counters, limit, most in FILES:
        try:
            lines = (root / counters).read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        kills = dict(line.split() for line in lines if len(line.split()) == 2).get("oom_kill", "0")
        return Memory(int(kills), _bytes(root / limit), _bytes(root / most))
    return None


def out_of_memory(before: Memory | None, after: Memory | None) -> str:
    """What was killed for, in words: "(limit 96.0 GiB, at most 95.8 GiB used); ..."; empty when nothing was."""
    if before is None or after is None or after.kills <= before.kills:
        return ""
    figures = [f"limit {_gib(after.limit)}" if after.limit else "", f"at most {_gib(after.most)} used"]
    shown = ", ".join(figure for figure in figures[: 2 if after.most else 1] if figure)
    way_out = "raise workers.resources.memory, or have fewer data workers (workers in the cluster file)"
    return f"({shown}); {way_out}" if shown else f"of the node; {way_out}"


def _bytes(path: Path) -> int | None:
    try:
        number = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there in older kernels; "max" is no limit
        return None
    return number if number < UNLIMITED else None


def _gib(size: int | None) -> str:
    return f"{(size or 0) / 2**30:.2f} GiB"
