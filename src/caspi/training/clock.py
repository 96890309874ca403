"""Where the time of training goes: steps, waiting for data, and what is aside (evaluation, checkpoints)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Measures from when it is made. What is aside counts for the bill, not for utterances a second."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.utterances = self.training = self.waited = 0.0
        self.speed = 0.0
        self._mark = self.began
        self._window = (0.0, 0.0, 0.0)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def waiting(self, steps: Iterable[T]) -> Iterator[T]:
        """Pass the steps on; how long each made us wait is counted."""
        iterator = iter(steps)
        self._mark = time.monotonic()
        while True:
            asked = time.monotonic()
            try:
                step = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield step

    def stepped(self, utterances: float) -> None:
        now = time.monotonic()
        self.training += now - self._mark
        self.utterances += utterances
        self._mark = now

    @contextmanager
    def aside(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._mark = time.monotonic()

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
