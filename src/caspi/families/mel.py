"""The log-mel spectrogram that Whisper-like encoders read, of a clip's true length."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from caspi.families.base import SAMPLE_RATE, Clip

HOP = 160
WINDOW = 400
SHORTEST = 1_600
"""Samples. A shorter clip is extended with silence: the window needs something to lie on."""


@dataclass(frozen=True, slots=True)
class LogMel:
    """Samples -> [bins, frames] of 10 ms.

    The operations and their order are those of `transformers.WhisperFeatureExtractor` (its torch path) on the
    clip alone, so that results are equal to the last bit; without its padding, copies and batch bookkeeping.
    """

    bins: int

    def frames(self, samples: int) -> int:
        return max(samples, SHORTEST) // HOP

    def __call__(self, clip: Clip) -> npt.NDArray[np.float32]:
        if len(clip) < SHORTEST:
            clip = np.pad(clip, (0, SHORTEST - len(clip)))
        samples = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
        with torch.autocast("cpu", enabled=False):  # a caller's bf16 is for the network
            spectrum = torch.stft(samples, WINDOW, HOP, window=_hann(), return_complex=True)
            power = spectrum[..., :-1].abs() ** 2
            level = torch.clamp(_filters(self.bins) @ power, min=1e-10).log10()
            level = torch.maximum(level, level.max() - 8.0)
            features: npt.NDArray[np.float32] = ((level + 4.0) / 4.0).numpy()
        return features


@functools.cache
def _hann() -> torch.Tensor:
    return torch.hann_window(WINDOW)


@functools.cache
def _filters(bins: int) -> torch.Tensor:
    """[bins, frequencies]: Slaney's scale and norm."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        num_frequency_bins=1 + WINDOW // 2,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=8_000.0,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(bank).to(torch.float32).T
