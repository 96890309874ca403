"""Who has come to an exchange between training processes, so that one that hangs can be named.

A collective waits for as long as its slowest rank takes, and says nothing meanwhile; its own timeout must be long,
because the leader downloads a base model or writes a checkpoint while the others wait. So each rank leaves a count in
a small table when it comes to an exchange of a step, and a thread of each rank looks at the table: where some have come
and others have not for `limit` seconds, it says who, and ends its process. The one that hangs does so itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from caspi.errors import Unanswered
from caspi.launched import tell_agent

LOOKS = 20  # at the table, within the limit


class Table(Protocol):
    """The counts of all ranks; torch's TCPStore is one."""

    def set(self, key: str, value: str, /) -> None: ...

    def multi_get(self, keys: list[str], /) -> list[bytes]: ...


@dataclass(slots=True)
class Attendance:
    """This rank's line in the table."""

    table: Table
    rank: int
    count: int = 0

    def arrive(self) -> None:
        """This rank waits for the others from here on."""
        self.count += 1
        self.table.set(str(self.rank), str(self.count))


@dataclass(slots=True)
class Watch:
    """Looks at the counts from time to time; remembers since when somebody waits for the ones that are behind."""

    limit: float
    since: float | None = None
    least: int = -1

    def missing(self, counts: Sequence[int] | None, now: float) -> frozenset[int]:
        """The ranks that the others have waited for since `limit` seconds. Without counts (None) it is rank 0 that
        does not answer: the table is in its memory."""
        if counts is None:
            behind, least = frozenset({0}), -1
        else:
            least = min(counts)
            behind = frozenset(rank for rank, count in enumerate(counts) if count < max(counts))
        if not behind:
            self.since = None
        elif self.since is None or least != self.least:
            self.since = now
        self.least = least
        return behind if self.since is not None and now - self.since > self.limit else frozenset()


@contextmanager
def attendance(rank: int, world_size: int, limit: float) -> Iterator[Attendance]:
    """Join the table of the process group that is up, and watch it until the end of the block."""
    host = os.environ["MASTER_ADDR"]
    server = TCPStore(host, 0, None, True, wait_for_workers=False) if rank == 0 else None
    box = [server.port if server else 0]
    dist.broadcast_object_list(box, src=0)
    mine = server or TCPStore(host, box[0], None, False)
    mine.set(str(rank), "0")
    dist.barrier()
    seen = TCPStore(host, box[0], None, False, timedelta(days=1))  # one that waits blocks its connection
    done, period = threading.Event(), limit / LOOKS
    keys = [str(number) for number in range(world_size)]
    counts, read_at = [0] * world_size, time.monotonic()

    def read() -> None:
        """In a thread of its own: where rank 0 is frozen it never returns, whatever timeout the store has."""
        nonlocal counts, read_at
        while not done.wait(period):
            try:
                counts = [int(count) for count in seen.multi_get(keys)]
            except dist.DistError:
                return  # rank 0 is gone, and the exchange fails by itself
            read_at = time.monotonic()

    def look() -> None:
        watch = Watch(limit)
        while not done.wait(period):
            now = time.monotonic()
            missing = watch.missing(counts if now - read_at < 3 * period else None, now)
            if missing and not done.is_set():
                _end(missing, limit)

    for work in (read, look):
        threading.Thread(target=work, name="attendance", daemon=True).start()
    try:
        yield Attendance(mine, rank)
    finally:
        done.set()


def _end(missing: frozenset[int], limit: float) -> None:
    """The training thread may wait in a collective for ever: no exception reaches it."""
    ranks = ", ".join(str(rank) for rank in sorted(missing))
    line = (
        f"rank {ranks} has not answered for {limit:g} s while the others waited; "
        "the last checkpoint is whole, run the same command to go on"
    )
    if not tell_agent(line):
        print(line, file=sys.stderr, flush=True)
    os._exit(Unanswered.exit_code)
