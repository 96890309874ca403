"""Families: kinds of models that the one engine trains. Nothing here imports torch until a family is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from caspi.errors import UserError
from caspi.files import read_json
from caspi.spec.models import ModelSpec

if TYPE_CHECKING:
    from caspi.families.base import Family


CARD = "caspi.json"
"""The model part of the round that made a checkpoint, beside its weights: its language and its context."""


def family_of(model: ModelSpec) -> Family:
    """The family that a round names."""
    if model.family == "ctc":
        from caspi.families.ctc import CTC

        return CTC
    from caspi.families.qwen3_asr import QWEN3_ASR

    return QWEN3_ASR


def detect(folder: Path) -> Family:
    """The family of a model on disk, by its config.json; UserError when it is none of them."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: config.json is missing; a model folder has one")
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if str(kind).startswith("qwen3_asr"):
        from caspi.families.qwen3_asr import QWEN3_ASR

        return QWEN3_ASR
    from caspi.families.ctc_folder import BACKBONES

    if kind in BACKBONES:
        from caspi.families.ctc import CTC

        return CTC
    known = ", ".join(("qwen3_asr", *BACKBONES))
    raise UserError(f"{folder}/config.json: model_type is {kind!r}, and the families are {known}")


def card_of(folder: Path) -> ModelSpec | None:
    """The model part of the round that made this checkpoint; None for a base model."""
    if not (folder / CARD).is_file():
        return None
    try:
        card: ModelSpec = TypeAdapter(ModelSpec).validate_python(read_json(folder / CARD))
    except ValidationError as error:
        raise UserError(f"{folder}/{CARD}: {error.errors()[0]['msg']}; copy it from where the model was made") from None
    return card
