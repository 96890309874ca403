"""Work in parts that any number of processes, on any number of machines, share through a folder.

A part is a file, written once and atomically, with the same bytes whoever does it. Who begins one claims it by a file
beside it, and touches that for as long as it works; a claim that is not touched any more is void. So any process may
be killed at any moment, and a part that is done twice does no harm. The leader, which holds the round's lock, opens
the folder and takes parts like everybody else: where nobody helps, it does them all.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from caspi.corpus.workers import spread
from caspi.files import digest

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
LOOK_SECONDS = 1.0

Task = TypeVar("Task")
Result = TypeVar("Result")


class Board:
    """Where the parts of one stage lie, and who is at which. Its name holds the inputs: other inputs, other parts."""

    def __init__(self, stage_folder: Path, inputs: Mapping[str, str]) -> None:
        self.folder = stage_folder / f"parts-{digest(dict(inputs))[:16]}"
        self._leads = False
        self._held: set[Path] = set()
        self._beats: dict[Path, tuple[int, float]] = {}

    def open(self) -> None:
        """For the leader: what was left of other inputs goes, and so do the claims of a leader that was killed."""
        for other in (*self.folder.parent.glob("parts-*"), *self.folder.parent.glob(".parts-*")):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for claim in self.folder.glob(".*.claim"):
            if _content(claim) in ("", "leader"):
                claim.unlink(missing_ok=True)
        self._leads = True
        (self.folder / ".open").touch()

    @property
    def is_open(self) -> bool:
        """Whether a leader wants these parts."""
        return (self.folder / ".open").exists()

    def close(self) -> None:
        """For the leader, when it needs the parts no more."""
        over = self.folder.with_name(f".{self.folder.name}.over")
        self.folder.rename(over)  # at once, so that nobody begins a part meanwhile
        shutil.rmtree(over, ignore_errors=True)

    def share(
        self, tasks: Mapping[str, Task], work: Callable[[Task], Result], processes: int
    ) -> Iterator[tuple[str, Result | None]]:
        """Yield each part, by its file's name, when it is there: with the result of `work` where it was done here.

        `work` writes the part. It runs in this process when `processes` is 1, and must be picklable otherwise. Ends
        when all parts are there; for an assistant also when the leader closes the board.
        """
        waiting = dict(tasks)
        with beating(self._held):
            try:
                while waiting:
                    there = {entry.name for entry in os.scandir(self.folder)}
                    for name in [name for name in waiting if name in there]:
                        del waiting[name]
                        yield name, None
                    if self._is_over():
                        return
                    free = [name for name in waiting if self._is_free(name, there)]
                    claimed = ((name, tasks[name]) for name in free if self._claim(name))
                    for name, result in spread(partial(_named, work), claimed, min(processes, len(free)), ahead=1):
                        self._release(self._claim_of(name))
                        del waiting[name]
                        yield name, result
                    if waiting and not free:
                        time.sleep(LOOK_SECONDS)
            except FileNotFoundError:
                if not self._is_over():
                    raise  # otherwise the folder is gone: others did what was left
            finally:
                for claim in list(self._held):
                    self._release(claim)
                if self._is_over():
                    shutil.rmtree(self.folder, ignore_errors=True)  # a late part of ours

    def _is_over(self) -> bool:
        """Whether an assistant has nothing to look for here any more."""
        return not self._leads and not self.is_open

    def _claim_of(self, name: str) -> Path:
        return self.folder / f".{name}.claim"

    def _is_free(self, name: str, there: Iterable[str]) -> bool:
        """Whether nobody is at this part. The time is this machine's alone: clocks may differ, so a claim is void when
        we see no touch of it for STALE_SECONDS."""
        claim = self._claim_of(name)
        if claim.name not in there:
            return True
        try:
            with claim.open("rb") as file:  # opened, so that a network file system asks its server
                beat = os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return True
        now = time.monotonic()
        known, since = self._beats.get(claim, (None, now))
        if beat != known:
            self._beats[claim] = (beat, now)
            return False
        if now - since < STALE_SECONDS:
            return False
        claim.unlink(missing_ok=True)
        return True

    def _claim(self, name: str) -> bool:
        """Claim a part that was free; False when another process was faster."""
        if self._is_over():
            return False
        claim = self._claim_of(name)
        try:
            with claim.open("x") as file:
                file.write("leader" if self._leads else "assistant")
        except FileExistsError:
            return False
        self._held.add(claim)
        if (self.folder / name).exists():
            self._release(claim)
            return False
        return True

    def _release(self, claim: Path) -> None:
        self._held.discard(claim)
        claim.unlink(missing_ok=True)


def open_boards(stage_folder: Path) -> set[str]:
    """The names of the folders that a leader has opened in a stage's folder."""
    return {path.parent.name for path in stage_folder.glob("parts-*/.open")}


@contextmanager
def beating(held: set[Path]) -> Iterator[None]:
    """Touch these files now and then until the end of the block: a sign of life for other machines."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            for path in list(held):
                try:
                    os.utime(path)
                except OSError:  # taken over meanwhile, or a disk that is away for a moment
                    continue

    threading.Thread(target=beat, name="claims", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _named(work: Callable[[Task], Result], task: tuple[str, Task]) -> tuple[str, Result]:
    return task[0], work(task[1])


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
