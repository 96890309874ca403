"""A copy of all that a pod prints, on the round's disk: Kubernetes deletes the log of a pod with the pod."""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path

MOST_BYTES = 20_000_000  # of a file; the one before it is kept as .1
WAITING = 1000  # pieces that wait for a slow disk; what comes on top of them is not copied
LINGER_SECONDS = 2.0


class LogCopy:
    """Between `open` and `close`, what this process and those it starts print goes to the log and to `path`.

    One thread passes it on to the log, at once, and another one writes the copy: whatever happens to the disk, nobody
    waits for it.
    """

    def __init__(self, path: Path, most: int = MOST_BYTES) -> None:
        self.path, self.most = path, most
        self.pieces: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self.said = False
        self.kept: list[int] = []
        self.threads: list[threading.Thread] = []

    def open(self) -> None:
        _flush()
        self.kept = [os.dup(1), os.dup(2)]
        read, write = os.pipe()
        for number in (1, 2):
            os.dup2(write, number)
        os.close(write)
        self.threads = [
            threading.Thread(target=self._pass_on, args=(read,), name="log", daemon=True),
            threading.Thread(target=self._write, name="log-copy", daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def close(self, seconds: float = LINGER_SECONDS) -> None:
        """Wait until all is passed on, or for so long: a process that is left over may hold the pipe."""
        if not self.kept:
            return
        _flush()
        for number, kept in zip((1, 2), self.kept, strict=True):
            os.dup2(kept, number)
        for thread in self.threads:
            thread.join(seconds)
        self.kept = []

    def _pass_on(self, source: int) -> None:
        log = self.kept[1]
        while piece := os.read(source, 65_536):
            _write_all(log, piece)
            try:
                self.pieces.put_nowait(piece)
            except queue.Full:
                self._say(log, "the disk is too slow")
        self.pieces.put(None)

    def _write(self) -> None:
        log = self.kept[1]
        while (piece := self.pieces.get()) is not None:
            # what waits goes in one write: opening the file for each line is slower than printing it
            while len(piece) < 65_536 and not self.pieces.empty():
                more = self.pieces.get()
                if more is None:
                    self.pieces.put(None)  # the end is for the next turn
                    break
                piece += more
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if self.path.exists() and self.path.stat().st_size + len(piece) > self.most:
                    self.path.replace(self.path.with_name(f"{self.path.name}.1"))
                with self.path.open("ab") as file:
                    file.write(piece)
            except OSError as error:
                self._say(log, str(error))

    def _say(self, log: int, why: str) -> None:
        """Once; training goes on."""
        if not self.said:
            self.said = True
            _write_all(log, f"warning: {self.path} is not a full copy of this log ({why})\n".encode())


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _write_all(number: int, data: bytes) -> None:
    while data:
        data = data[os.write(number, data) :]
