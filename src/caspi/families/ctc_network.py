"""CTC encoders of `transformers` as one module that trains and decodes: the package's layers, this project's loss.

What differs from the package's own forward, so that a clip's loss does not depend on what it is batched with: the
loss is a sum; padding is masked everywhere; a norm over time (wav2vec2-base's first convolution) counts the clip
alone, not its padding; a norm over the batch (Parakeet's convolutions, batch norm) keeps the statistics that the
base came with. Those never move, so ranks cannot drift apart in them either. What the base's config asks for of
masking and of dropping layers is left to the engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from caspi.families.ctc_folder import BACKBONES, PARAKEET
from caspi.families.labels import IGNORED

Lengths = torch.Tensor
"""[clips], integers: how much of each padded row is clip."""


class Network(torch.nn.Module):
    """An encoder and its CTC head."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.recompute = False
        self._type: str = model.config.model_type
        self._blank: int = model.config.pad_token_id

    def forward(self, features: torch.Tensor, steps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the clips' CTC losses, fp32; 0 for a clip that is too short to spell its labels.

        features: [clips, samples] or [clips, frames, bins], padded on the right; steps: [clips], how much of it is
        clip; labels: [clips, longest], IGNORED after the last.
        """
        logits, lengths = self.logits(features, steps)
        labelled = labels != IGNORED
        log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)
        with torch.backends.cudnn.flags(enabled=False):  # its CTC loss takes other arguments and rounds differently
            return functional.ctc_loss(
                log_probabilities,
                labels.masked_fill(~labelled, self._blank),
                lengths,
                labelled.sum(1),
                blank=self._blank,
                reduction="sum",
                zero_infinity=True,
            )

    @torch.inference_mode()
    def likeliest(self, features: torch.Tensor, steps: torch.Tensor) -> list[list[int]]:
        """The likeliest token of each output frame of each clip; padding has none."""
        logits, lengths = self.logits(features, steps)
        best = logits.argmax(-1)
        return [row[:length] for row, length in zip(best.tolist(), lengths.tolist(), strict=True)]

    def logits(self, features: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, Lengths]:
        """[clips, output frames, vocabulary], and how many of the output frames are the clip's."""
        lengths = output_frames(self.model.config, steps)
        if self._type == PARAKEET:
            attended = _within(features.shape[1], steps)
            hidden = self.model.encoder(input_features=features, attention_mask=attended).last_hidden_state
            return self.model.ctc_head(hidden.transpose(1, 2)).transpose(1, 2), lengths
        if self._type == "wav2vec2-bert":
            hidden = self.backbone(input_features=features, attention_mask=_within(features.shape[1], steps))[0]
        else:
            hidden = self._project(self._front(features, steps))
            hidden = self.backbone.encoder(hidden, attention_mask=_within(hidden.shape[1], lengths))[0]
        return self.model.lm_head(self.model.dropout(hidden)), lengths

    @property
    def backbone(self) -> Any:
        """All but the head."""
        return getattr(self.model, BACKBONES[self._type])

    def train(self, mode: bool = True) -> Network:
        """Norms over the batch stay in evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _front(self, samples: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """The convolutions over the waveform: [clips, samples] -> [clips, channels, output frames]."""
        first, *others = self.backbone.feature_extractor.conv_layers
        hidden = samples[:, None]
        if isinstance(getattr(first, "layer_norm", None), torch.nn.GroupNorm):
            lengths = (steps - first.conv.kernel_size[0]) // first.conv.stride[0] + 1
            if self.recompute and self.training:
                hidden = checkpoint(_normed_convolution, first, hidden, lengths, use_reentrant=False)
            else:
                hidden = _normed_convolution(first, hidden, lengths)
        else:
            others = [first, *others]
        for layer in others:
            hidden = layer(hidden)
        return hidden

    def _project(self, hidden: torch.Tensor) -> torch.Tensor:
        """[clips, channels, frames] -> [clips, frames, width]"""
        projected = self.backbone.feature_projection(hidden.transpose(1, 2))
        width: torch.Tensor = projected[0] if isinstance(projected, tuple) else projected  # HuBERT returns one
        return width


def output_frames(config: Any, steps: Any) -> Any:
    """How many frames come out of so many samples or spectrogram frames; an int, or a tensor of them."""
    if config.model_type == PARAKEET:
        encoder = config.encoder_config
        kernel, stride = encoder.subsampling_conv_kernel_size, encoder.subsampling_conv_stride
        layers = [(kernel, stride, (kernel - 1) // 2)] * (encoder.subsampling_factor.bit_length() - 1)
    elif config.model_type == "wav2vec2-bert":
        layers = []
    else:
        layers = [(kernel, stride, 0) for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True)]
    for kernel, stride, padding in layers:
        steps = (steps + 2 * padding - kernel) // stride + 1
    return steps


def _normed_convolution(layer: Any, hidden: torch.Tensor, lengths: Lengths) -> torch.Tensor:
    """A convolution whose output is normalised channel by channel over the time of each clip, without its padding."""
    hidden = layer.conv(hidden)
    norm = layer.layer_norm
    with torch.autocast(hidden.device.type, enabled=False):
        values = hidden.float()
        inside = _within(values.shape[2], lengths)[:, None]
        count = lengths[:, None, None]
        centred = (values - (values * inside).sum(2, keepdim=True) / count) * inside
        variance = centred.square().sum(2, keepdim=True) / count
        normed = centred * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]
    activated: torch.Tensor = layer.activation(normed.to(hidden.dtype))
    return activated


def _within(longest: int, lengths: Lengths) -> torch.Tensor:
    """[clips, longest], True where a row is clip."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]
