"""Copies: found across codecs, levels and encoder delays; different speech is not taken for a copy."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import soxr

from caspi.audit.leakage import SAME, Held, copies, fingerprint, same_audio
from caspi.corpus.audio import decode
from caspi.corpus.manifest import Utterance

RATE = 16_000


def speech(seed: int, seconds: float = 1.8) -> np.ndarray:
    """A voice with formants that move from sound to sound: what a fingerprint looks at."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    clip = np.zeros(time.size)
    sounds = np.linspace(0, time.size, int(6 * seconds) + 1).astype(int)
    for start, stop in pairwise(sounds):
        formants = random.uniform([300, 900, 2000], [800, 2200, 3200])
        part = time[start:stop]
        gain = random.uniform(0.1, 1) * np.hanning(part.size)
        for k in range(1, 30):
            weight = sum(np.exp(-(((k * 115 - f) / 150) ** 2)) for f in formants)
            clip[start:stop] += gain * weight * np.sin(2 * np.pi * 115 * k * part)
    clip += 0.002 * random.standard_normal(time.size) * np.abs(clip).max()
    return (0.6 * clip / np.abs(clip).max()).astype(np.float32)


def encoded(clip: np.ndarray, format_: str, subtype: str, rate: int) -> np.ndarray:
    """The clip after a round through a codec."""
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(clip, RATE, rate, "VHQ"), rate, format=format_, subtype=subtype)
    return decode(file.getvalue())


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    a, b = fingerprint(one.astype(np.float32)), fingerprint(other.astype(np.float32))
    assert a is not None
    assert b is not None
    return float(a.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize(
    ("format_", "subtype", "rate"),
    [
        ("MP3", "MPEG_LAYER_III", 16_000),
        ("MP3", "MPEG_LAYER_III", 44_100),
        ("OGG", "VORBIS", 8_000),
        ("OGG", "OPUS", 48_000),
        ("OGG", "OPUS", 16_000),
        ("FLAC", "PCM_16", 8_000),
        ("WAV", "ULAW", 8_000),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_copy_in_another_codec_is_known(format_: str, subtype: str, rate: int, seed: int) -> None:
    clip = speech(seed)
    assert likeness(clip, encoded(0.3 * clip, format_, subtype, rate)) > SAME


@pytest.mark.parametrize("milliseconds", [5, 26, 50, 90])
def test_an_encoder_delay_changes_nothing(milliseconds: int) -> None:
    clip = speech(4)
    delayed = np.concatenate([np.zeros(16 * milliseconds, np.float32), clip, np.zeros(300, np.float32)])
    assert likeness(clip, delayed) > SAME


def test_different_speech_is_different() -> None:
    prints = np.stack([fingerprint(speech(seed)) for seed in range(60)]).astype(np.float64)
    others = (prints @ prints.T)[np.triu_indices(60, 1)]
    assert others.max() < 0.8
    assert likeness(speech(1), speech(1)[: RATE // 2 * 3]) < SAME  # a part is no copy


@pytest.mark.parametrize("clip", [np.zeros(RATE), np.zeros(1), np.full(RATE, 1e-4)])
def test_nothing_to_hear_has_no_fingerprint(clip: np.ndarray) -> None:
    assert fingerprint(clip.astype(np.float32)) is None


@pytest.mark.parametrize("size", [1, 80, 400, 5000])
def test_a_very_short_clip_does_no_harm(size: int) -> None:
    found = fingerprint(speech(1)[8000 : 8000 + size])
    assert found is None or abs(float(np.linalg.norm(found.astype(np.float64))) - 1) < 0.01


def test_groups_join_by_bytes_and_by_sound() -> None:
    a, b = fingerprint(speech(1)), fingerprint(speech(2))
    assert a is not None
    assert b is not None
    digests = {"x/1": b"1", "x/2": b"1", "x/3": b"3", "x/4": b"4", "x/5": b"5"}
    prints = {"x/2": a, "x/3": a, "x/4": b, "x/5": a}
    seconds = {"x/1": 1.8, "x/2": 1.8, "x/3": 1.85, "x/4": 1.8, "x/5": 9.0}
    assert same_audio(digests, prints, seconds) == [["x/1", "x/2", "x/3"]]
    assert same_audio({}, {}, {}) == []


def test_many_blocks_find_what_one_block_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = {f"x/{i:02}": fingerprint(speech(i % 10)) for i in range(30)}
    seconds = {name: 1.8 + 0.001 * i for i, name in enumerate(prints)}
    digests = {name: name.encode() for name in prints}
    whole = same_audio(digests, prints, seconds)  # type: ignore[arg-type]
    monkeypatch.setattr("caspi.audit.leakage.BLOCK", 4)
    assert same_audio(digests, prints, seconds) == whole  # type: ignore[arg-type]
    assert [len(group) for group in whole] == [3] * 10


def utterance(name: str, text: str) -> Utterance:
    return Utterance(name, name, text, 2.0, name.split("/")[0], "phone")


def test_what_copies_mean() -> None:
    train = {
        one.id: one
        for one in (
            utterance("a/1", "שלום"),
            utterance("a/2", "שלום!"),
            utterance("a/3", "תודה"),
            utterance("a/4", "כן"),
            utterance("a/5", "לא"),
        )
    }
    held = {"t/1": Held(utterance("t/1", "כן"), "test set news"), "t/2": Held(utterance("t/2", "אז"), "dev")}
    found = [
        (one.id, check, detail)
        for one, check, detail in copies([["a/1", "a/2", "a/3"], ["a/4", "t/1"], ["t/1", "t/2"]], train, held)
    ]
    assert sorted(found) == [
        ("a/1", "conflicting_text", 'same audio as a/3, which says "תודה"'),
        ("a/2", "conflicting_text", 'same audio as a/3, which says "תודה"'),
        ("a/2", "duplicate", "same audio and text as a/1"),
        ("a/3", "conflicting_text", 'same audio as a/1, which says "שלום"'),
        ("a/4", "leaked", "same audio as t/1 in test set news"),
    ]
