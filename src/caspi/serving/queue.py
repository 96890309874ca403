"""Micro-batching: clips that wait together are transcribed together, by one thread, without failing together."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from caspi.families.base import SAMPLE_RATE, Clip, Hypothesis

Transcribe = Callable[[Sequence[Clip]], list[Hypothesis]]


class Overloaded(Exception):
    """Too much is waiting, or nothing is taken any more; `retry_after` is in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much is transcribed at once, and how much may wait for it."""

    clips: int = 16
    padded_seconds: float = 60.0
    """Clips in a batch times the longest of them. One clip alone may be longer."""
    collect: float = 0.005
    """Seconds that the first clip waits for company."""
    waiting: int = 64
    """Clips that may wait; one more is refused."""


@dataclass(frozen=True, slots=True)
class BatchDone:
    """What one call of the model took."""

    clips: int
    audio_seconds: float
    seconds: float


@dataclass(eq=False, slots=True)
class _Waiting:
    clip: Clip
    answer: Future[Hypothesis] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return len(self.clip) / SAMPLE_RATE


class MicroBatches:
    """A queue with many writers (`submit`) and one reader (`run`, in a thread of its own)."""

    def __init__(self, limits: BatchLimits, on_batch: Callable[[BatchDone], None] = lambda _: None) -> None:
        self._limits = limits
        self._on_batch = on_batch
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._closed = False
        self._pace = 1.0  # seconds of work for a second of audio, a running mean

    def submit(self, clip: Clip) -> Future[Hypothesis]:
        """Queue a clip. The answer is its hypothesis, or the model's exception on this clip alone."""
        with self._changed:
            if self._closed or len(self._waiting) >= self._limits.waiting:
                raise Overloaded(self._seconds_to_wait())
            waiting = _Waiting(clip)
            self._waiting.append(waiting)
            self._changed.notify()
            return waiting.answer

    def run(self, transcribe: Transcribe) -> None:
        """Transcribe whatever comes, until `close`; what waits by then is still done."""
        while batch := self._take():
            begun = time.monotonic()
            _answer(batch, transcribe)
            audio_seconds, seconds = sum(one.seconds for one in batch), time.monotonic() - begun
            self._pace += 0.2 * (seconds / max(audio_seconds, 0.1) - self._pace)
            self._on_batch(BatchDone(len(batch), audio_seconds, seconds))

    def close(self) -> None:
        """Take no more clips, and let `run` return when the last is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def depth(self) -> int:
        """Clips that wait now."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= self._limits.waiting

    def _seconds_to_wait(self) -> int:
        return max(1, min(60, math.ceil(self._pace * sum(one.seconds for one in self._waiting))))

    def _take(self) -> list[_Waiting]:
        """The next batch; empty when the queue is closed and done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                patience = self._waiting[0].since + self._limits.collect - time.monotonic()
                self._changed.wait_for(lambda: len(self._waiting) >= self._limits.clips or self._closed, patience)
                places = choose([one.seconds for one in self._waiting], self._limits)
                chosen = [self._waiting[place] for place in places]
                self._waiting = [one for one in self._waiting if one not in chosen]
                # a caller that went away has cancelled its answer
                if batch := [one for one in chosen if one.answer.set_running_or_notify_cancel()]:
                    return batch


def choose(seconds: Sequence[float], limits: BatchLimits) -> list[int]:
    """Places of the clips that go together: the oldest, then those nearest to it in length, shortest first.

    Near lengths waste little on padding; the oldest is always in, so that none waits for ever.
    """
    chosen = [0]
    longest = seconds[0]
    for place in sorted(range(1, len(seconds)), key=lambda place: (abs(seconds[place] - seconds[0]), place)):
        if len(chosen) == limits.clips:
            break
        if (len(chosen) + 1) * max(longest, seconds[place]) <= limits.padded_seconds:
            chosen.append(place)
            longest = max(longest, seconds[place])
    return sorted(chosen, key=lambda place: (seconds[place], place))


def _answer(batch: Sequence[_Waiting], transcribe: Transcribe) -> None:
    """Give every clip its hypothesis; when the batch fails, each clip is tried alone and fails alone."""
    try:
        hypotheses = transcribe([one.clip for one in batch])
        assert len(hypotheses) == len(batch), f"{len(hypotheses)} hypotheses for {len(batch)} clips"
    except Exception as error:
        if len(batch) == 1:
            batch[0].answer.set_exception(error)
        else:
            for one in batch:
                _answer([one], transcribe)
        return
    for one, hypothesis in zip(batch, hypotheses, strict=True):
        one.answer.set_result(hypothesis)
