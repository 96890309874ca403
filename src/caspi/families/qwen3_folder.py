"""A Qwen3-ASR model on disk: the layout of the qwen-asr package, read, checked and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caspi.errors import UserError
from caspi.families.hub_folder import Layout
from caspi.files import read_json

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Everything but the weights."""


def is_qwen3_asr(config: Mapping[str, Any]) -> bool:
    """Whether config.json describes a Qwen3-ASR of either layout."""
    return str(config.get("model_type", "")).startswith("qwen3_asr")


def read_layout(folder: Path) -> Layout:
    """Side files of a folder; UserError when it is no Qwen3-ASR, has another layout, lacks a file or is cut short."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder in the qwen-asr layout, a repository id or tiny")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: config.json is missing; a model in the qwen-asr layout has one")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not is_qwen3_asr(config):
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise UserError(
            f"{folder}/config.json: model_type is {kind!r}, and qwen3-asr loads qwen3_asr; set model.family to its "
            "family, or take another base"
        )
    _check_layout(folder, config)
    problems = _missing(folder)
    if problems:
        raise UserError(*problems)
    files = {name: (folder / name).read_bytes() for name in SIDE_FILES if (folder / name).is_file()}
    return Layout(config, files)


_NATIVE = ("model.audio_tower.", "model.multi_modal_projector.", "model.language_model.")
"""What names of weights begin with in the layout of transformers itself; in that of qwen-asr it is `thinker.`."""


def _check_layout(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse the layout of transformers itself, by config.json or by the weights alone: loaded as the other one,
    neither raises, and all weights are random. It is not converted: that it computes the same could only be shown
    beside transformers >= 5.13, and qwen-asr needs 4.57.6.
    """
    by_config = "thinker_config" not in config
    names = [name for path in sorted(folder.glob("*.safetensors")) for name in _tensor_names(path)]
    by_weights = any(name.startswith(_NATIVE) for name in names)
    if by_config and any(name.startswith("thinker.") for name in names):
        raise UserError(
            f"{folder}: config.json is in the layout of transformers itself, and the weights are in that of qwen-asr; "
            "copy config.json from the base that they were trained from"
        )
    if by_config or by_weights:
        seen = "config.json has no thinker_config" if by_config else f"its weights are named {_NATIVE[0]}..."
        raise UserError(
            f"{folder}: this is the layout of transformers itself, a -hf checkpoint ({seen}): it would load as random "
            "weights and is not converted; take the same model in the qwen-asr layout, without -hf"
        )


def _tensor_names(path: Path) -> list[str]:
    """By the header of a safetensors file (its length in 8 bytes, then JSON); UserError unless the file is whole."""
    there = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length) if length <= there else b"")
        names = [name for name in header if name != "__metadata__"]
        end = 8 + length + max((int(header[name]["data_offsets"][1]) for name in names), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise UserError(f"{path}: the weights do not load: it is no safetensors file; copy it again") from None
    if there != end:
        raise UserError(
            f"{path}: the weights do not load: it has {there:,} bytes, and its header says {end:,}; copy it again"
        )
    return names


def _missing(folder: Path) -> list[str]:
    has = {name for name in SIDE_FILES if (folder / name).is_file()}
    tokenizer_config = read_json(folder / "tokenizer_config.json") if "tokenizer_config.json" in has else {}
    wanted = {
        "preprocessor_config.json": "preprocessor_config.json" in has,
        "tokenizer_config.json": "tokenizer_config.json" in has,
        "tokenizer.json (or vocab.json and merges.txt)": "tokenizer.json" in has or {"vocab.json", "merges.txt"} <= has,
        "chat_template.json (or .jinja)": bool({"chat_template.json", "chat_template.jinja"} & has)
        or "chat_template" in tokenizer_config,
        "*.safetensors": any(folder.glob("*.safetensors")),
    }
    return [
        f"{folder}: {name} is missing; qwen_asr cannot load this folder, copy it from the base model"
        for name, there in wanted.items()
        if not there
    ]
