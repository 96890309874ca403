"""How many parameters a base model has, block by block, known without torch.

`python -m caspi.families.counts --write` counts the known bases on torch's meta device (shapes, no memory) and
writes counts.json beside this file; a test counts again. Never type such a number.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caspi.errors import UserError
from caspi.files import read_json, write_json
from caspi.spec.models import TINY, ModelSpec, is_repository

STORED = Path(__file__).with_name("counts.json")


@dataclass(frozen=True, slots=True)
class Dimensions:
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
class Counts:
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
    dimensions: Dimensions

    @property
    def total(self) -> int:
        own = self.audio_stem + sum(self.audio_layers) + self.projector + self.embedding + sum(self.llm_layers)
        return own + self.llm_norm + (0 if self.tied else self.lm_head)

    def group(self, name: str) -> int:
        """Parameters of a group as a round names it; UserError when it asks for more layers than there are."""
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


def parameter_counts(model: ModelSpec) -> Counts | None:
    """Counts of a round's base: stored for the known ones, counted from its config.json where that is on this
    machine (imports torch), None where it is not."""
    stored: Mapping[str, Any] = read_json(STORED)
    if model.base in stored:
        return _read(stored[model.base])
    config = _local_config(model)
    if config is None:
        return None
    values = read_json(config)
    if not isinstance(values, dict) or "thinker_config" not in values:
        return None  # `Family.load` says what is wrong with it
    return count(values)


def count(config: Mapping[str, Any]) -> Counts:
    """Count the model of a config.json in the qwen-asr layout, on the meta device."""
    import torch

    from caspi.families.qwen3_backend import backend

    classes = backend()
    with torch.device("meta"):
        thinker = classes.Qwen3ASRForConditionalGeneration(classes.Qwen3ASRConfig(**config)).thinker

    def size(*modules: Any) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    tower, text = thinker.audio_tower, thinker.model
    audio, language = thinker.config.audio_config, thinker.config.text_config
    counts = Counts(
        audio_stem=size(tower.conv2d1, tower.conv2d2, tower.conv2d3, tower.conv_out),
        audio_layers=tuple(size(layer) for layer in tower.layers),
        projector=size(tower.ln_post, tower.proj1, tower.proj2),
        embedding=size(text.embed_tokens),
        llm_layers=tuple(size(layer) for layer in text.layers),
        llm_norm=size(text.norm),
        lm_head=size(thinker.lm_head),
        tied=thinker.lm_head.weight is text.embed_tokens.weight,
        dimensions=Dimensions(
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
    assert counts.total == size(thinker), "a block is missing from Counts"
    return counts


def known_configs() -> dict[str, dict[str, Any]]:
    """config.json of the bases whose counts are stored: their sizes, as published with the weights."""
    from caspi.families.tiny import config_values

    return {
        TINY: config_values(),
        "Qwen/Qwen3-ASR-0.6B": _published(width=896, heads=14, layers=18, ffn=3584, hidden=1024, intermediate=3072),
        "Qwen/Qwen3-ASR-1.7B": _published(width=1024, heads=16, layers=24, ffn=4096, hidden=2048, intermediate=6144),
    }


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


def _local_config(model: ModelSpec) -> Path | None:
    folder = Path(model.base).expanduser()
    if folder.is_dir() or not is_repository(model.base):
        config = folder / "config.json"
        return config if config.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.base, "config.json", revision=model.revision)
    return Path(cached) if isinstance(cached, str) else None


def _read(values: Mapping[str, Any]) -> Counts:
    return Counts(
        **{
            **values,
            "audio_layers": tuple(values["audio_layers"]),
            "llm_layers": tuple(values["llm_layers"]),
            "dimensions": Dimensions(**values["dimensions"]),
        }
    )


def _write() -> None:
    write_json(STORED, {base: asdict(count(config)) for base, config in known_configs().items()})


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m caspi.families.counts --write")
    _write()
