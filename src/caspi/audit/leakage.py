"""The same audio twice: within training, or on both sides of the line between training and judging.

Equal files have equal bytes. A copy that was encoded anew, louder or softer, has an equal fingerprint: how the
energy of 17 bands from 300 to 3,000 Hz (a phone line carries them) moves over 24 parts of the clip, each band
without its mean, at unit length. On the demo's speech, copies agree to a cosine of 0.99 and other clips to at most
0.95, though one synthetic voice there says nearly the same words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caspi.corpus.manifest import Utterance
from caspi.scoring.profiles import apply
from caspi.spec.data import AuditCheck

Fingerprint = npt.NDArray[np.float16]
"""Unit length, shape [PARTS * BANDS]."""

SAMPLE_RATE = 16_000
WINDOW, HOP = 4096, 512
PARTS, BANDS = 24, 17
SAME = 0.97
TOO_SOFT = 10 ** (-60 / 20)
"""A peak below which a clip holds nothing to recognise it by."""
_EDGES = np.round(np.geomspace(300, 3000, BANDS + 1) * WINDOW / SAMPLE_RATE).astype(int)
_HANN = np.hanning(WINDOW).astype(np.float32)


def fingerprint(clip: npt.NDArray[np.float32]) -> Fingerprint | None:
    """The fingerprint of a mono clip at 16 kHz; None when there is nothing to hear."""
    if np.abs(clip).max() < TOO_SOFT:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(clip, WINDOW // 2), WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * _HANN, axis=1)[:, : _EDGES[-1]]) ** 2
    energy = np.add.reduceat(power, _EDGES[:-1], axis=1)
    levels = np.log10(energy + 1e-12)
    levels = np.maximum(levels, levels.max() - 3)  # 30 dB down, codecs and noise differ
    parts = np.diff(_at(_summed(levels), _middle(energy.sum(axis=1))), axis=0)
    parts -= parts.mean(axis=0)
    length = float(np.linalg.norm(parts))
    return (parts / length).astype(np.float16).ravel() if length > 0 else None


def _middle(energy: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """PARTS + 1 bounds, in frames, from where 0.5% of the energy has passed to where 99.5% has.

    That is the same place in every copy, while encoders put some silence before and after.
    """
    passed = _summed(energy[:, None])[:, 0]
    first, last = np.interp([0.005 * passed[-1], 0.995 * passed[-1]], passed, np.arange(len(passed)))
    return np.linspace(first, last, PARTS + 1)


def _summed(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Sums of the rows before each row, and of all: [rows + 1, columns]."""
    return np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])


def _at(rows: npt.NDArray[np.float64], places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows at fractional places, in between by straight lines."""
    before = np.minimum(places.astype(int), len(rows) - 2)
    between = (places - before)[:, None]
    return np.asarray((1 - between) * rows[before] + between * rows[before + 1])


def same_audio(
    digests: Mapping[str, bytes], fingerprints: Mapping[str, Fingerprint], seconds: Mapping[str, float]
) -> list[list[str]]:
    """Groups of ids, two or more each, that hold the same audio: by bytes, by fingerprint, or by way of another."""
    groups = _Groups()
    first: dict[bytes, str] = {}
    for name, digest in digests.items():
        groups.join(name, first.setdefault(digest, name))
    for one, other in _alike(fingerprints, seconds):
        groups.join(one, other)
    return groups.shared()


def _alike(fingerprints: Mapping[str, Fingerprint], seconds: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Pairs with equal fingerprints whose lengths differ by at most 0.12 s or 2%: encoders pad a little."""
    names = sorted(fingerprints, key=lambda name: (seconds[name], name))
    if not names:
        return
    lengths = np.array([seconds[name] for name in names])
    ends = np.searchsorted(lengths, lengths + np.maximum(0.12, 0.02 * lengths), side="right")
    vectors = np.stack([fingerprints[name] for name in names])
    for start in range(0, len(names), BLOCK):
        stop = min(start + BLOCK, len(names))
        rows = vectors[start:stop].astype(np.float32)
        for column in range(start, int(ends[stop - 1]), BLOCK):
            columns = vectors[column : column + BLOCK].astype(np.float32)
            for i, j in np.argwhere(rows @ columns.T >= SAME):
                one, other = start + int(i), column + int(j)
                if one < other < ends[one]:
                    yield names[one], names[other]


BLOCK = 1024


class _Groups:
    """Union-find over names."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, one: str, other: str) -> None:
        roots = sorted((self._root(one), self._root(other)))
        self._parents[roots[1]] = roots[0]

    def shared(self) -> list[list[str]]:
        members: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._parents):
            members[self._root(name)].append(name)
        return [group for group in members.values() if len(group) > 1]

    def _root(self, name: str) -> str:
        parent = self._parents.setdefault(name, name)
        while parent != self._parents[parent]:
            self._parents[name] = parent = self._parents[parent]
        return parent


@dataclass(frozen=True, slots=True)
class Held:
    """An utterance that judges the model: of dev, or of a test set."""

    utterance: Utterance
    place: str
    """For people: `dev`, `test set NAME`."""


def copies(
    groups: Sequence[Sequence[str]], train: Mapping[str, Utterance], held: Mapping[str, Held]
) -> Iterator[tuple[Utterance, AuditCheck, str]]:
    """What groups of the same audio mean for training: (utterance, check, detail for people).

    All members of a group with differing texts conflict, since nobody knows which is right. Of those with one text
    (but for case and punctuation) the first by id is the original, and the others are duplicates.
    """
    for group in groups:
        members = [train[name] for name in sorted(group) if name in train]
        outside = [held[name] for name in sorted(group) if name in held]
        originals: dict[str, Utterance] = {}
        said = {utterance.id: apply("plain", utterance.text) for utterance in members}
        for utterance in members:
            if outside:
                yield utterance, "leaked", f"same audio as {outside[0].utterance.id} in {outside[0].place}"
            original = originals.setdefault(said[utterance.id], utterance)
            if original is not utterance:
                yield utterance, "duplicate", f"same audio and text as {original.id}"
        for utterance in members:
            if other := next((o for text, o in originals.items() if text != said[utterance.id]), None):
                yield utterance, "conflicting_text", f'same audio as {other.id}, which says "{other.text}"'
