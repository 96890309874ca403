"""Parameters and activations of a Qwen3-ASR, counted from its config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caspi.errors import UserError
from caspi.spec.models import TINY

FRAMES = 100  # of the spectrogram, a second
AUDIO_TOKENS = 13  # a second, after the encoder
TEXT_TOKENS = 10  # a second at most: transcript, and the share of the prompt


@dataclass(frozen=True, slots=True)
class Qwen3Dimensions:
    """What an estimate of memory needs beside the counts."""

    vocabulary: int
    hidden: int
    """Width of the language model."""
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    head: int
    """Width of one attention head."""
    audio_hidden: int
    audio_intermediate: int
    audio_layers: int
    audio_heads: int
    audio_channels: int
    """Of the convolutions before the encoder."""
    mel_bins: int


@dataclass(frozen=True, slots=True)
class Qwen3Counts:
    """Parameters of each block; tied tensors counted once, where the embedding is."""

    audio_stem: int
    """The convolutions."""
    audio_layers: tuple[int, ...]
    """From the bottom up."""
    projector: int
    embedding: int
    llm_layers: tuple[int, ...]
    """From the bottom up."""
    llm_norm: int
    lm_head: int
    """Of the output head; when it is tied these are the embedding's."""
    tied: bool
    dimensions: Qwen3Dimensions

    @property
    def total(self) -> int:
        own = self.audio_stem + sum(self.audio_layers) + self.projector + self.embedding + sum(self.llm_layers)
        return own + self.llm_norm + (0 if self.tied else self.lm_head)

    @property
    def head_rows(self) -> int:
        return self.dimensions.vocabulary

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.audio_layers + self.llm_layers

    def group(self, name: str) -> int:
        kind, _, number = name.partition(":")
        if kind in ("llm_top", "audio_top"):
            part, layers = {
                "llm_top": ("language model", self.llm_layers),
                "audio_top": ("audio encoder", self.audio_layers),
            }[kind]
            if int(number) > len(layers):
                raise UserError(f'"{name}": the {part} has {len(layers)} layers')
            return sum(layers[len(layers) - int(number) :])
        return {"all": self.total, "projector": self.projector, "lm_head": self.lm_head}[kind]

    def adapters(self, targets: Sequence[str]) -> int:
        d = self.dimensions
        sides = {  # in + out of each matrix of the language model
            "q_proj": d.hidden + d.heads * d.head,
            "k_proj": d.hidden + d.key_value_heads * d.head,
            "v_proj": d.hidden + d.key_value_heads * d.head,
            "o_proj": d.heads * d.head + d.hidden,
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), d.hidden + d.intermediate),
        }
        return d.layers * sum(sides[target] for target in targets)

    def activation_bytes(self, recompute: bool, longest: float) -> float:
        """Audio encoder, language model, and logits at the labels. Attention is over short windows of the audio and
        in the language model without a matrix, so it does not matter how long an utterance is."""
        d = self.dimensions
        width = 2 if recompute else 4  # bf16 on GPUs, fp32 on CPUs
        tokens = AUDIO_TOKENS + TEXT_TOKENS
        # Three convolutions, each halves time and frequency; output and its activation are kept.
        front = 2 * d.audio_channels * d.mel_bins * FRAMES * (1 / 4 + 1 / 16 + 1 / 64)
        audio_layer = AUDIO_TOKENS * (10 * d.audio_hidden + 3 * d.audio_intermediate)
        llm_layer = tokens * (6 * d.hidden + 4 * d.heads * d.head + 4 * d.intermediate)
        if recompute:
            audio = d.audio_layers * AUDIO_TOKENS * d.audio_hidden + audio_layer
            llm = d.layers * tokens * d.hidden + llm_layer
        else:
            audio, llm = d.audio_layers * audio_layer, d.layers * llm_layer
        logits = TEXT_TOKENS * d.vocabulary * 10  # fp32 logits and gradient, and their bf16 source
        return width * (front + audio + llm) + logits

    @staticmethod
    def recognises(config: Mapping[str, Any]) -> bool:
        return "thinker_config" in config

    @staticmethod
    def read(values: Mapping[str, Any]) -> Qwen3Counts:
        """What asdict and JSON made of the counts."""
        return Qwen3Counts(
            **{
                **values,
                "audio_layers": tuple(values["audio_layers"]),
                "llm_layers": tuple(values["llm_layers"]),
                "dimensions": Qwen3Dimensions(**values["dimensions"]),
            }
        )

    @staticmethod
    def count(config: Mapping[str, Any]) -> Qwen3Counts:
        """Count the model of a config.json in the qwen-asr layout, on the meta device."""
        return _count(config)

    @staticmethod
    def known() -> dict[str, dict[str, Any]]:
        """config.json of the bases whose counts are stored: their sizes, as published with the weights."""
        from caspi.families.tiny import config_values

        return {
            TINY: config_values(),
            "Qwen/Qwen3-ASR-0.6B": _published(width=896, heads=14, layers=18, ffn=3584, hidden=1024, intermediate=3072),
            "Qwen/Qwen3-ASR-1.7B": _published(
                width=1024, heads=16, layers=24, ffn=4096, hidden=2048, intermediate=6144
            ),
        }


def _count(config: Mapping[str, Any]) -> Qwen3Counts:
    import torch

    from caspi.families.qwen3_backend import backend

    classes = backend()
    with torch.device("meta"):
        thinker = classes.Qwen3ASRForConditionalGeneration(classes.Qwen3ASRConfig(**config)).thinker

    def size(*modules: Any) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    tower, text = thinker.audio_tower, thinker.model
    audio, language = thinker.config.audio_config, thinker.config.text_config
    counts = Qwen3Counts(
        audio_stem=size(tower.conv2d1, tower.conv2d2, tower.conv2d3, tower.conv_out),
        audio_layers=tuple(size(layer) for layer in tower.layers),
        projector=size(tower.ln_post, tower.proj1, tower.proj2),
        embedding=size(text.embed_tokens),
        llm_layers=tuple(size(layer) for layer in text.layers),
        llm_norm=size(text.norm),
        lm_head=size(thinker.lm_head),
        tied=thinker.lm_head.weight is text.embed_tokens.weight,
        dimensions=Qwen3Dimensions(
            vocabulary=language.vocab_size,
            hidden=language.hidden_size,
            intermediate=language.intermediate_size,
            layers=language.num_hidden_layers,
            heads=language.num_attention_heads,
            key_value_heads=language.num_key_value_heads,
            head=language.head_dim,
            audio_hidden=audio.d_model,
            audio_intermediate=audio.encoder_ffn_dim,
            audio_layers=audio.encoder_layers,
            audio_heads=audio.encoder_attention_heads,
            audio_channels=audio.downsample_hidden_size,
            mel_bins=audio.num_mel_bins,
        ),
    )
    assert counts.total == size(thinker), "a block is missing from Qwen3Counts"
    return counts


def _published(*, width: int, heads: int, layers: int, ffn: int, hidden: int, intermediate: int) -> dict[str, Any]:
    return {
        "thinker_config": {
            "audio_config": {
                "num_mel_bins": 128,
                "downsample_hidden_size": 480,
                "d_model": width,
                "encoder_layers": layers,
                "encoder_attention_heads": heads,
                "encoder_ffn_dim": ffn,
                "output_dim": hidden,
            },
            "text_config": {
                "vocab_size": 151_936,
                "hidden_size": hidden,
                "intermediate_size": intermediate,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
                "tie_word_embeddings": True,
            },
        }
    }
