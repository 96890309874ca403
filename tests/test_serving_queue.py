"""Micro-batching by itself: which clips go together, and that they don't fail together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspi.families.base import SAMPLE_RATE, Clip, Hypothesis
from caspi.serving.queue import BatchDone, BatchLimits, MicroBatches, Overloaded, Transcribe, choose


def clip(seconds: float, value: float = 0.1) -> Clip:
    return np.full(int(seconds * SAMPLE_RATE), value, np.float32)


def lengths(clips: Sequence[Clip]) -> list[Hypothesis]:
    return [Hypothesis(text=str(len(one)), raw="") for one in clips]


@contextmanager
def running(batches: MicroBatches, transcribe: Transcribe) -> Iterator[None]:
    thread = threading.Thread(target=batches.run, args=(transcribe,))
    thread.start()
    try:
        yield
    finally:
        batches.close()
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("seconds", "limits", "chosen"),
    [
        ([2.0], BatchLimits(), [0]),
        ([99.0], BatchLimits(padded_seconds=60), [0]),  # alone it may be longer than the cap
        ([99.0, 1.0], BatchLimits(padded_seconds=60), [0]),
        ([3.0, 1.0, 2.0], BatchLimits(padded_seconds=60), [1, 2, 0]),  # shortest first
        ([2.0, 9.0, 2.1, 1.9], BatchLimits(clips=3), [3, 0, 2]),  # nearest in length to the oldest
        ([2.0, 2.0, 2.0, 2.0], BatchLimits(padded_seconds=6), [0, 1, 2]),
        ([1.0, 5.0, 1.0], BatchLimits(padded_seconds=6), [0, 2]),  # 3 x 5 s would be too much
    ],
)
def test_which_clips_go_together(seconds: list[float], limits: BatchLimits, chosen: list[int]) -> None:
    assert choose(seconds, limits) == chosen


@given(
    st.lists(st.floats(0.1, 300), min_size=1, max_size=40),
    st.integers(1, 16),
    st.floats(1, 120),
)
def test_every_batch_has_the_oldest_and_respects_the_cap(seconds: list[float], clips: int, cap: float) -> None:
    chosen = choose(seconds, BatchLimits(clips=clips, padded_seconds=cap))
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen) <= clips
    assert len(chosen) == 1 or len(chosen) * max(seconds[place] for place in chosen) <= cap
    assert [seconds[place] for place in chosen] == sorted(seconds[place] for place in chosen)


def test_what_waits_together_is_one_call_and_each_gets_its_own() -> None:
    calls: list[int] = []
    done: list[BatchDone] = []
    batches = MicroBatches(BatchLimits(clips=8), done.append)
    answers = [batches.submit(clip(seconds)) for seconds in (3, 1, 2, 1)]

    def transcribe(clips: Sequence[Clip]) -> list[Hypothesis]:
        calls.append(len(clips))
        return lengths(clips)

    with running(batches, transcribe):
        heard = [answer.result(5).text for answer in answers]
    assert calls == [4]
    assert heard == [str(seconds * SAMPLE_RATE) for seconds in (3, 1, 2, 1)]
    assert [(one.clips, one.audio_seconds) for one in done] == [(4, 7.0)]


def test_a_poisoned_clip_fails_alone() -> None:
    def transcribe(clips: Sequence[Clip]) -> list[Hypothesis]:
        if any(one[0] > 0.5 for one in clips):
            raise RuntimeError("poison")
        return lengths(clips)

    batches = MicroBatches(BatchLimits())
    answers = [batches.submit(clip(1, value)) for value in (0.1, 0.9, 0.1)]
    with running(batches, transcribe):
        assert answers[0].result(5).text == answers[2].result(5).text == "16000"
        with pytest.raises(RuntimeError, match="poison"):
            answers[1].result(5)


def test_a_model_that_loses_a_clip_is_found_out() -> None:
    batches = MicroBatches(BatchLimits())
    answer = batches.submit(clip(1))
    with running(batches, lambda clips: []), pytest.raises(AssertionError, match="0 hypotheses for 1 clips"):
        answer.result(5)


def test_too_much_waiting_is_refused_with_a_time() -> None:
    batches = MicroBatches(BatchLimits(waiting=3))
    for _ in range(3):
        batches.submit(clip(4))
    assert batches.full
    with pytest.raises(Overloaded) as refused:
        batches.submit(clip(1))
    assert refused.value.retry_after == 12  # 12 s of audio wait, at a pace of 1 before anything is measured


def test_closing_finishes_what_waits_and_takes_nothing_more() -> None:
    batches = MicroBatches(BatchLimits())
    answers = [batches.submit(clip(1)) for _ in range(40)]
    batches.close()
    with pytest.raises(Overloaded):
        batches.submit(clip(1))
    batches.run(lengths)  # returns by itself
    assert all(answer.result(0).text == "16000" for answer in answers)


def test_who_went_away_is_not_transcribed() -> None:
    seen: list[int] = []
    batches = MicroBatches(BatchLimits())
    gone, stays = batches.submit(clip(1)), batches.submit(clip(2))
    gone.cancel()
    batches.close()

    def transcribe(clips: Sequence[Clip]) -> list[Hypothesis]:
        seen.extend(len(one) for one in clips)
        return lengths(clips)

    batches.run(transcribe)
    assert seen == [2 * SAMPLE_RATE]
    assert stays.result(0).text == "32000"
