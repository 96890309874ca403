"""Signals: each fault is found, and speech as it should be is left in peace."""

from __future__ import annotations

import numpy as np
import pytest

from caspi.audit.signals import measure, signal_problems, text_problems
from caspi.corpus.manifest import Utterance

RATE = 16_000


def speech(seconds: float = 2.0, peak: float = 0.5, seed: int = 0) -> np.ndarray:
    """Something with the ups and downs, and the peaks, of speech: syllables of a harmonic voice over soft noise."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 120 * k * time + random.uniform(0, 6)) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 4 * time + random.uniform(0, 6)), 0, 1) ** 2 * random.uniform(0.3, 1)
    clip = voice * syllables + 0.003 * random.standard_normal(time.size)
    return (clip * peak / np.abs(clip).max()).astype(np.float32)


def checks(clip: np.ndarray, expected_seconds: float | None = None) -> list[str]:
    signals = measure(clip.astype(np.float32))
    return [check for check, _ in signal_problems(signals, expected_seconds or signals.seconds)]


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (speech(), []),
        (speech(peak=0.03), []),
        (speech(0.05), []),
        (np.zeros(RATE), ["silent"]),
        (np.zeros(1), ["silent"]),
        (1e-4 * np.random.default_rng(0).standard_normal(RATE), ["silent"]),
        (speech(peak=0.004), ["quiet"]),
        (np.clip(8 * speech(), -1, 1), ["clipped"]),
        (0.3 * np.clip(8 * speech(), -1, 1), ["clipped"]),  # made softer after it was clipped
    ],
    ids=["speech", "soft", "50 ms", "zeros", "one sample", "noise", "quiet", "clipped", "clipped, then softer"],
)
def test_a_clip_and_its_problems(clip: np.ndarray, expected: list[str]) -> None:
    assert checks(clip) == expected


@pytest.mark.parametrize(("manifest", "found"), [(2.0, False), (2.09, False), (2.2, True), (1.5, True), (9.0, True)])
def test_a_clip_that_ends_early(manifest: float, found: bool) -> None:
    assert ("undecodable" in checks(speech(2.0), manifest)) == found


def test_figures_of_a_clip() -> None:
    half = np.concatenate([np.zeros(RATE // 2), speech(1.0), np.zeros(RATE // 4)]).astype(np.float32)
    signals = measure(half)
    assert signals.seconds == 1.75
    assert signals.peak == pytest.approx(20 * np.log10(0.5), abs=0.01)
    assert signals.lead == pytest.approx(0.5, abs=0.15)
    assert signals.trail == pytest.approx(0.25, abs=0.15)
    assert 0.4 < signals.silence < 0.8
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    assert measure(tone).level == pytest.approx(20 * np.log10(np.sqrt(0.5)), abs=0.1)


def utterance(number: int, characters: int, seconds: float = 2.0, source: str = "crowd") -> Utterance:
    return Utterance(f"{source}/{number}", f"{source}/{number}", "א" * characters, seconds, source, "phone")


def test_text_that_cannot_fit() -> None:
    random = np.random.default_rng(1)
    usual = [utterance(i, int(20 * random.lognormal(0, 0.15))) for i in range(200)]
    odd = [utterance(900, 59), utterance(901, 3), utterance(902, 0)]
    found = {one.id: detail for one, detail in text_problems([*usual, *odd])}
    assert set(found) == {one.id for one in odd}
    assert found["crowd/900"].startswith("29.5 characters a second; crowd has ")


def test_each_source_has_its_own_rate() -> None:
    slow = [utterance(i, 10 + i % 3, source="slow") for i in range(60)]
    fast = [utterance(i, 40 + i % 5, source="fast") for i in range(60)]
    assert not list(text_problems([*slow, *fast]))
    stray = utterance(99, 44, source="slow")
    assert [one.id for one, _ in text_problems([*slow, *fast, stray])] == ["slow/99"]


def test_a_small_source_has_absolute_limits_only() -> None:
    few = [utterance(i, 20) for i in range(5)]
    assert [one.id for one, _ in text_problems([*few, utterance(7, 50), utterance(8, 70)])] == ["crowd/8"]
