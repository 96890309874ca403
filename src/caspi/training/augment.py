"""Augmentation that is a function of (seed, epoch, utterance): the same on every rank, for any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import soxr

from caspi.spec.round import Augment, SpecAugment

Features = npt.NDArray[np.float32]
SAMPLE_RATE = 16_000
WIDEST_TIME_MASK = 0.2  # of an utterance's frames: a mask never hides most of a short clip


def utterance_keys(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """A 64-bit key for each utterance, from its id alone: not from its place in the manifest."""
    digests = b"".join(hashlib.blake2b(id.encode(), digest_size=8).digest() for id in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def speed_factors(augment: Augment, keys: npt.NDArray[np.uint64], seed: int, epoch: int) -> npt.NDArray[np.float64]:
    """The speed of each utterance in this epoch; known before any audio is read, so that batches are packed by
    the lengths that they will really have."""
    choices = np.asarray(augment.speed, dtype=np.float64)
    salt = np.random.SeedSequence([seed, epoch, 2]).generate_state(1, np.uint64)[0]
    return choices[(_mixed(keys ^ salt) % np.uint64(len(choices))).astype(np.int64)]


def augmented_rng(seed: int, epoch: int, key: int, copy: int) -> np.random.Generator:
    """The randomness of one utterance in one epoch; `copy` tells repetitions within the epoch apart."""
    return np.random.default_rng([seed, epoch, copy, key])


def change_speed(clip: npt.NDArray[np.float32], factor: float) -> npt.NDArray[np.float32]:
    """Play faster (factor > 1) or slower, as a tape would: pitch moves too. Length becomes length / factor."""
    if factor == 1.0:
        return clip
    changed: npt.NDArray[np.float32] = soxr.resample(clip, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ")
    return changed


def mask(features: Features, spec: SpecAugment, rng: np.random.Generator) -> Features:
    """SpecAugment (Park et al. 2019): bands of bins and stretches of frames are set to the mean of the features."""
    bins, frames = features.shape
    masked = features.copy()
    fill = features.mean()
    for count, widest, size, axis in (
        (spec.freq[0], min(spec.freq[1], bins), bins, 0),
        (spec.time[0], min(spec.time[1], int(frames * WIDEST_TIME_MASK)), frames, 1),
    ):
        for _ in range(count):
            width = int(rng.integers(0, widest + 1))
            first = int(rng.integers(0, size - width + 1))
            if axis == 0:
                masked[first : first + width, :] = fill
            else:
                masked[:, first : first + width] = fill
    return masked


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
