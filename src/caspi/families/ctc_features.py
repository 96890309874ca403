"""What CTC encoders read: the waveform, or a log-mel spectrogram, by the base's own feature extractor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from caspi.errors import UserError
from caspi.families.base import SAMPLE_RATE, Clip
from caspi.families.ctc_backend import backend

SHORTEST = 1_600
"""Samples. A shorter clip is extended with silence: a convolution needs something to lie on."""


class Features:
    """Samples -> [bins, columns]: mel bins by frames of 10 ms, or one bin of samples.

    One clip at a time: the extractors of `transformers` normalise a padded batch as if silence belonged to its clips.
    """

    def __init__(self, extractor: Any, model_type: str) -> None:
        self._extractor = extractor
        self._name = "input_features" if "input_features" in extractor.model_input_names else "input_values"
        self.spectral = self._name == "input_features"
        self.stacked = int(extractor.stride) if model_type == "wav2vec2-bert" else 1
        """How many columns the network takes as one."""
        self._hop = int(extractor.hop_length) if model_type == "parakeet_ctc" else SAMPLE_RATE // 100

    def __call__(self, clip: Clip) -> npt.NDArray[np.float32]:
        if len(clip) < SHORTEST:
            clip = np.pad(clip, (0, SHORTEST - len(clip)))
        with torch.autocast("cpu", enabled=False):  # a caller's bf16 is for the network
            found = self._extractor(
                [np.ascontiguousarray(clip, dtype=np.float32)],
                sampling_rate=SAMPLE_RATE,
                return_attention_mask=True,
                return_tensors="np",
            )
        values: npt.NDArray[np.float32] = found[self._name][0].astype(np.float32, copy=False)
        if not self.spectral:
            return values[None]
        frames = values[: int(found["attention_mask"][0].sum())]
        return np.ascontiguousarray(frames.reshape(len(frames) * self.stacked, -1).T)

    def steps(self, seconds: float) -> int:
        """What `collate` gives of so long a clip: samples, or frames, stacked."""
        samples = max(round(seconds * SAMPLE_RATE), SHORTEST)
        if not self.spectral:
            return samples
        if self.stacked == 1:
            return samples // self._hop
        return (1 + (samples - 400) // self._hop) // self.stacked  # windows of 25 ms, none beyond the end

    def collate(self, features: Sequence[npt.NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
        """[clips, longest, bins * stacked] (of waveforms [clips, longest]), padded with 0; how much of each is clip."""
        rows = [torch.from_numpy(np.ascontiguousarray(each.T)) for each in features]
        if self.spectral:
            rows = [row.reshape(len(row) // self.stacked, -1) for row in rows]
        else:
            rows = [row[:, 0] for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded, torch.tensor([len(row) for row in rows])


def load_features(folder: Path, model_type: str) -> Features:
    """The feature extractor of a model folder; UserError when it reads another rate than everything here has."""
    try:
        extractor = backend(model_type).AutoFeatureExtractor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}/preprocessor_config.json: it does not load ({reason})") from None
    if extractor.sampling_rate != SAMPLE_RATE:
        raise UserError(
            f"{folder}/preprocessor_config.json: sampling_rate is {extractor.sampling_rate}, and audio here has "
            f"{SAMPLE_RATE}; take a base of that rate"
        )
    return Features(extractor, model_type)
