"""A Qwen3-ASR model on disk: the layout of the qwen-asr package, read, checked, written and downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caspi.errors import UserError
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


_WANTED = ["*.json", "*.txt", "*.jinja", "*.safetensors"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The side files of a model, held in memory: a checkpoint gets them as they were, when its base is long gone."""

    config: Mapping[str, Any]
    files: Mapping[str, bytes]

    def write(self, folder: Path) -> None:
        """Write all of them; the config says fp32, as the weights beside it are."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        text = json.dumps(_in_fp32(self.config), ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def is_qwen3_asr(config: Mapping[str, Any]) -> bool:
    """Whether config.json describes a Qwen3-ASR of either layout."""
    return str(config.get("model_type", "")).startswith("qwen3_asr")


def read_layout(folder: Path) -> Layout:
    """Side files of a folder; UserError when it is no Qwen3-ASR, has another layout or lacks a file."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder in the qwen-asr layout, a repository id or tiny")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: config.json is missing; a model in the qwen-asr layout has one")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not is_qwen3_asr(config):
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise UserError(f"{folder}/config.json: model_type is {kind!r}, and qwen3-asr loads qwen3_asr")
    if "thinker_config" not in config:
        raise UserError(
            f"{folder}: this is the layout of transformers itself (a -hf checkpoint), which would load as random "
            "weights; take the checkpoint in the qwen-asr layout (its config.json has thinker_config)"
        )
    problems = _missing(folder)
    if problems:
        raise UserError(*problems)
    files = {name: (folder / name).read_bytes() for name in SIDE_FILES if (folder / name).is_file()}
    return Layout(config, files)


def download(repository: str, revision: str) -> Path:
    """The folder of a repository's snapshot in the Hugging Face cache, downloaded as far as it is missing.

    The token, the endpoint and the cache are those of huggingface_hub (HF_TOKEN, HF_ENDPOINT, HF_HOME).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{repository} at {revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
    except GatedRepoError:
        raise UserError(f"{where}: access is restricted; accept its terms, and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UserError(f"{where}: no such revision; model.revision is a commit of the repository") from None
    except RepositoryNotFoundError:
        raise UserError(f"{where}: no such repository, or a private one: set HF_TOKEN") from None
    except OSError as error:  # what requests and huggingface_hub raise derives from it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{where}: download failed ({reason}); run again to go on where it stopped") from None


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


def _in_fp32(config: Any) -> Any:
    """The config with every dtype in it set to float32, at any depth."""
    if not isinstance(config, Mapping):
        return config
    return {
        key: "float32" if key in ("dtype", "torch_dtype") and value is not None else _in_fp32(value)
        for key, value in config.items()
    }
