"""Augmentation that is a function of (seed, epoch, utterance): the same on every rank, for any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import soxr

from caspi.spec.round import Augment, Noise, SpecAugment

Clip = npt.NDArray[np.float32]
Features = npt.NDArray[np.float32]
SAMPLE_RATE = 16_000
FRAME = 160  # samples of 10 ms
NOISE = 1  # its own stream of random numbers: with noise or without, the masks of a round are the same
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


def augmented(clip: Clip, augment: Augment, seed: int, epoch: int, key: int, copy: int, speed: float) -> Clip:
    """The sound of an utterance as training hears it in one epoch; `speed` is that of speed_factors."""
    clip = change_speed(clip, speed)
    if augment.noise is None:
        return clip
    return add_noise(clip, augment.noise, np.random.default_rng([seed, epoch, copy, key, NOISE]))


def augmented_rng(seed: int, epoch: int, key: int, copy: int) -> np.random.Generator:
    """The randomness of one utterance in one epoch; `copy` tells repetitions within the epoch apart."""
    return np.random.default_rng([seed, epoch, copy, key])


def change_speed(clip: Clip, factor: float) -> Clip:
    """Play faster (factor > 1) or slower, as a tape would: pitch moves too. Length becomes length / factor."""
    if factor == 1.0:
        return clip
    changed: Clip = soxr.resample(clip, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ")
    return changed


def add_noise(clip: Clip, noise: Noise, rng: np.random.Generator) -> Clip:
    """White noise under a share of the clips: its power is that of the clip, less the drawn SNR in dB. Silence stays
    silent. Not clipped to [-1, 1]: features are computed from floats, and clipping would add another noise."""
    if rng.random() >= noise.share:
        return clip
    level = rng.uniform(*noise.snr)
    power = float(np.mean(np.square(clip, dtype=np.float64))) if len(clip) else 0.0
    if power == 0.0:
        return clip
    loudness = np.float32(np.sqrt(power / 10 ** (level / 10)))
    return clip + loudness * rng.standard_normal(len(clip), dtype=np.float32)


def mask(features: Features, spec: SpecAugment, rng: np.random.Generator) -> Features:
    """SpecAugment (Park et al. 2019): bands of bins and stretches of frames are set to the mean of the features.

    Features of one bin are the waveform itself, [1, samples]: stretches of as many milliseconds are silenced.
    """
    masked = features.copy()
    bins, length = features.shape
    widest = int(length * WIDEST_TIME_MASK)
    if bins == 1:
        for first, width in _stretches(spec.time[0], min(spec.time[1] * FRAME, widest), length, rng):
            masked[:, first : first + width] = 0
        return masked
    fill = features.mean()
    for first, width in _stretches(spec.freq[0], min(spec.freq[1], bins), bins, rng):
        masked[first : first + width, :] = fill
    for first, width in _stretches(spec.time[0], min(spec.time[1], widest), length, rng):
        masked[:, first : first + width] = fill
    return masked


def _stretches(count: int, widest: int, size: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(first, width) of each of `count` stretches within `size`, up to `widest` wide."""
    for _ in range(count):
        width = int(rng.integers(0, widest + 1))
        yield int(rng.integers(0, size - width + 1)), width


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
