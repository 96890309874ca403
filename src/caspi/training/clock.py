"""Where the time of training goes: steps, waiting for data, and what is aside (evaluation, checkpoints)."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from caspi.files import file_digest

T = TypeVar("T")

ROUGH = 20  # the first steps of a phase start workers, fill caches and choose kernels: they say little about the rest


class Clock:
    """Measures from when it is made. What is aside counts for the bill, not for utterances a second."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.began = now()
        self.utterances = self.training = self.waited = 0.0
        self.speed = 0.0
        self.phase_steps = 0
        """Steps since the phase began, in this process."""
        self._mark = self.began
        self._window = (0.0, 0.0, 0.0)
        self._smooth_from = 0.0
        self._aside: dict[str, float] = {}

    def seconds(self) -> float:
        return self.now() - self.began

    def begin_phase(self) -> None:
        """Another phase has another pace."""
        self.phase_steps = 0

    def waiting(self, steps: Iterable[T]) -> Iterator[T]:
        """Pass the steps on; how long each made us wait is counted."""
        iterator = iter(steps)
        self._mark = self.now()
        while True:
            asked = self.now()
            try:
                step = next(iterator)
            except StopIteration:
                return
            self.waited += self.now() - asked
            yield step

    def stepped(self, utterances: float) -> None:
        now = self.now()
        self.training += now - self._mark
        self.utterances += utterances
        self._mark = now
        self.phase_steps += 1
        if self.phase_steps == ROUGH:
            self._smooth_from = self.training

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        began = self.now()
        try:
            yield
        finally:
            self._mark = self.now()
            self._aside[what] = self._mark - began

    def last(self, what: str) -> float | None:
        """Seconds that the last one of `what` took; None before the first."""
        return self._aside.get(what)

    def step_seconds(self) -> float | None:
        """Seconds of a step in this phase, without its rough first ones; None before them."""
        if self.phase_steps <= ROUGH:
            return None
        return (self.training - self._smooth_from) / (self.phase_steps - ROUGH)

    def window(self) -> tuple[float, float]:
        """Utterances a second, and the share of the time that was spent waiting, since the last call."""
        utterances, training, waited = self._window
        self._window = (self.utterances, self.training, self.waited)
        spent = max(1e-9, self.training - training)
        self.speed = (self.utterances - utterances) / spent
        return self.speed, (self.waited - waited) / spent

    def overall(self) -> float:
        return self.utterances / max(1e-9, self.training)

    def waited_share(self) -> float:
        return self.waited / max(1e-9, self.training)


def seconds_a_byte(folder: Path) -> float:
    """To write to this folder's disk, flush and digest, as a checkpoint is: from a file of 16 MB that is deleted."""
    content = os.urandom(1 << 24)
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".speed.", suffix=".part") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        file_digest(Path(file.name))
    return (time.monotonic() - began) / len(content)
