"""Parameters and activations of a CTC encoder, counted from its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caspi.errors import UserError
from caspi.spec.models import TINY, TINY_PARAKEET

SAMPLES = 16_000  # a second
FRAMES = 100  # of a spectrogram, a second


@dataclass(frozen=True, slots=True)
class CtcDimensions:
    """What an estimate of memory needs beside the counts. A value is one number that is kept."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    frames: float
    """Output frames a second."""
    front: float
    """Values a second that the convolutions before the encoder keep."""
    front_recomputed: float
    """The same when they are recomputed: their inputs, and the largest of them whole."""
    layer_hidden: float
    """Values of the hidden width that a layer keeps for each frame,"""
    layer_intermediate: float
    """and of its feed-forward width."""
    matrices: float
    """Values that attention keeps in a layer for each pair of frames; 0 where the matrix is never made."""


@dataclass(frozen=True, slots=True)
class CtcCounts:
    """Parameters of each block."""

    front: int
    """What turns audio into frames."""
    layers: tuple[int, ...]
    """Of the encoder, from the bottom up."""
    between: int
    """Of the encoder, outside of its layers."""
    lm_head: int
    unused: int
    """Only the base's own masking reads them: they never move."""
    sides: dict[str, int]
    """In + out of each matrix that LoRA may adapt, over all layers."""
    dimensions: CtcDimensions
    tied: bool = False

    @property
    def total(self) -> int:
        return self.front + sum(self.layers) + self.between + self.lm_head + self.unused

    @property
    def head_rows(self) -> int:
        return self.dimensions.vocabulary

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.layers

    def group(self, name: str) -> int:
        kind, _, number = name.partition(":")
        if kind == "audio_top":
            if int(number) > len(self.layers):
                raise UserError(f'"{name}": the encoder has {len(self.layers)} layers')
            return sum(self.layers[len(self.layers) - int(number) :])
        encoder = sum(self.layers) + self.between
        moving = self.total - self.unused
        return {"all": moving, "front": self.front, "encoder": encoder, "lm_head": self.lm_head}[kind]

    def adapters(self, targets: Sequence[str]) -> int:
        lacking = [target for target in targets if target not in self.sides]
        if lacking:
            raise UserError(f"targets: {', '.join(lacking)} can't be adapted here; it has {', '.join(self.sides)}")
        return sum(self.sides[target] for target in targets)

    def activation_bytes(self, recompute: bool, longest: float) -> float:
        """The convolutions over the waveform come first: they have 64 times as many frames as the layers."""
        d = self.dimensions
        width = 2 if recompute else 4  # bf16 on GPUs, fp32 on CPUs
        kept = d.layer_hidden * d.hidden + d.layer_intermediate * d.intermediate + d.matrices * d.frames * longest
        layers = d.layers * d.hidden + kept if recompute else d.layers * kept
        # Into and out of the first and last norm and the positions; the logits and what CTC makes of them are fp32.
        return width * ((d.front_recomputed if recompute else d.front) + d.frames * (layers + 6 * d.hidden)) + (
            4 * d.frames * 3 * d.vocabulary
        )

    @staticmethod
    def recognises(config: Mapping[str, Any]) -> bool:
        from caspi.families.ctc_folder import is_ctc

        return is_ctc(config)

    @staticmethod
    def read(values: Mapping[str, Any]) -> CtcCounts:
        """What asdict and JSON made of the counts."""
        dimensions = CtcDimensions(**values["dimensions"])
        return CtcCounts(**{**values, "layers": tuple(values["layers"]), "dimensions": dimensions})

    @staticmethod
    def count(config: Mapping[str, Any]) -> CtcCounts:
        """Count the model of a config.json as `transformers.AutoModelForCTC` makes it, on the meta device."""
        return _count(config)

    @staticmethod
    def known() -> dict[str, dict[str, Any]]:
        """config.json of the bases whose counts are stored: their sizes, as published with the weights."""
        from caspi.families.ctc_tiny import config_values

        large = {"model_type": "wav2vec2", "vocab_size": 32, "hidden_size": 1024, "intermediate_size": 4096}
        large |= {"num_hidden_layers": 24, "num_attention_heads": 16}
        normed = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
        return {
            TINY: config_values(TINY),
            TINY_PARAKEET: config_values(TINY_PARAKEET),
            "facebook/wav2vec2-large-960h": large,
            "facebook/wav2vec2-xls-r-300m": {**large, **normed},
        }


def _count(config: Mapping[str, Any]) -> CtcCounts:
    import torch

    from caspi.families.ctc import MATRICES, UNUSED
    from caspi.families.ctc_backend import backend
    from caspi.families.ctc_folder import BACKBONES, PARAKEET

    kind = config["model_type"]
    classes = backend(kind)
    made = classes.AutoConfig.for_model(kind, **{name: value for name, value in config.items() if name != "model_type"})
    with torch.device("meta"):
        model = classes.AutoModelForCTC.from_config(made)
    backbone = getattr(model, BACKBONES[kind])
    front = {PARAKEET: "subsampling", "wav2vec2-bert": "feature_projection"}.get(kind, "feature_extractor")
    layers = (backbone if kind == PARAKEET else backbone.encoder).layers
    head = model.ctc_head if kind == PARAKEET else model.lm_head

    def size(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    def sides(matrix: str) -> int:
        return sum(
            module.in_features + module.out_features
            for name, module in layers.named_modules()
            if re.fullmatch(rf"\d+\.\w+\.{matrix}", name)
        )

    unused = sum(parameter.numel() for name, parameter in model.named_parameters() if name.endswith(UNUSED))
    apart = size(getattr(backbone, front)) + size(layers) + size(head) + unused
    return CtcCounts(
        front=size(getattr(backbone, front)),
        layers=tuple(size(layer) for layer in layers),
        between=size(model) - apart,
        lm_head=size(head),
        unused=unused,
        sides={target: sides(matrix) for target, matrix in MATRICES[kind].items()},
        dimensions=_dimensions(kind, made),
    )


def _dimensions(kind: str, config: Any) -> CtcDimensions:
    """What the layers of `transformers` keep for the backward pass; a test counts it on the real tensors."""
    encoder = getattr(config, "encoder_config", config)
    heads, head = encoder.num_attention_heads, encoder.hidden_size // encoder.num_attention_heads
    if kind == "parakeet_ctc":
        front, frames = _spectrogram_front(encoder)
        recomputed = front
        kept = (24.0, 4.0, heads)  # relative positions: a matrix of scores in each head
    elif kind == "wav2vec2-bert":
        frames = FRAMES / 2
        front = recomputed = frames * (encoder.feature_projection_input_dim + encoder.hidden_size)
        kept = (20.0, 4.0, heads + head + 2)  # and an embedding of every distance, with its index
    else:
        front, recomputed, frames = _waveform_front(config)
        kept = (9.0, 2.0, heads) if kind == "wavlm" else (8.0, 2.0, 0)
    layer_hidden, layer_intermediate, matrices = kept
    return CtcDimensions(
        vocabulary=config.vocab_size,
        hidden=encoder.hidden_size,
        intermediate=encoder.intermediate_size,
        layers=encoder.num_hidden_layers,
        heads=heads,
        frames=frames,
        front=front,
        front_recomputed=recomputed,
        layer_hidden=layer_hidden,
        layer_intermediate=layer_intermediate,
        matrices=matrices,
    )


def _waveform_front(config: Any) -> tuple[float, float, float]:
    """(values kept a second, kept with recomputation, output frames a second) of the convolutions over samples."""
    frames, outputs = float(SAMPLES), []
    for channels, stride in zip(config.conv_dim, config.conv_stride, strict=True):
        frames /= stride
        outputs.append(channels * frames)
    # Of each layer: what it is convolved to, its norm where it has one, its activation. The norm over time of a
    # single first layer is ours, in fp32: centred, scaled, shifted. A relu does not keep what goes into it.
    normed = config.feat_extract_norm == "layer"
    times = [3.0] * len(outputs) if normed else [4.0, *[2.0] * (len(outputs) - 1)]
    spared = 1.0 if config.feat_extract_activation == "relu" else 0.0
    whole = [(times_ - spared) * values for times_, values in zip(times, outputs, strict=True)]
    return SAMPLES + sum(whole), SAMPLES + sum(outputs) + max(whole), frames


def _spectrogram_front(encoder: Any) -> tuple[float, float]:
    """(values kept a second, output frames a second) of the convolutions over a spectrogram: each halves both sides."""
    frames, bins = float(FRAMES), float(encoder.num_mel_bins)
    values = frames * bins
    for number in range(encoder.subsampling_factor.bit_length() - 1):
        frames, bins = frames / encoder.subsampling_conv_stride, bins / encoder.subsampling_conv_stride
        values += encoder.subsampling_conv_channels * frames * bins * (1 if number == 0 else 3)
    return values, frames
