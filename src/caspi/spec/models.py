"""The model part of a round: one type for each family, told apart by `family`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from caspi.spec.values import Frozen

TINY = "tiny"
TINY_PARAKEET = "tiny-parakeet"

LANGUAGE = r"^[A-Z][A-Za-z]*( [A-Z][A-Za-z]*)*$"


class Qwen3AsrModel(Frozen):
    """Qwen3-ASR: an audio encoder, a projector and a Qwen3 language model."""

    family: Literal["qwen3-asr"]
    """Which kind of model."""
    base: str = Field(min_length=1)
    """A Hugging Face repository, a local folder in the qwen-asr layout, or `tiny`: a small model from random
    weights, made on the spot with the same code."""
    revision: str | None = None
    """The commit of the repository. Required for a repository; a branch name moves, and `caspi doctor` says so."""
    language: str = Field(pattern=LANGUAGE)
    """The language as it stands in the training prefix: `language Hebrew<asr_text>...`. Free text, in English."""
    context: str = ""
    """The text of the system turn, the same for every utterance."""

    @model_validator(mode="after")
    def _consistent(self) -> Qwen3AsrModel:
        check_pinned(self.base, self.revision)
        if self.base == TINY_PARAKEET:
            raise ValueError(f"base = {self.base}: that is of the family ctc; qwen3-asr has tiny")
        return self

    def group_problem(self, group: str) -> str | None:
        """Why `group` names no parameter group of this family; None when it does."""
        if re.fullmatch(r"projector|lm_head|all|(llm_top|audio_top):[1-9]\d*", group):
            return None
        return f'"{group}" is no group of qwen3-asr; it has projector, llm_top:N, lm_head, audio_top:N, all'


class CtcModel(Frozen):
    """An encoder with a CTC head: wav2vec2, HuBERT, WavLM, w2v-BERT or Parakeet, told apart by the base's config."""

    family: Literal["ctc"]
    """Which kind of model."""
    base: str = Field(min_length=1)
    """A Hugging Face repository or a local folder that `transformers.AutoModelForCTC` loads, or a small model from
    random weights, made on the spot: `tiny` (wav2vec2) or `tiny-parakeet` (FastConformer)."""
    revision: str | None = None
    """The commit of the repository. Required for a repository; a branch name moves, and `caspi doctor` says so."""
    vocabulary: Literal["base", "corpus"] = "base"
    """Whose characters the head spells: those of the base's tokenizer, or those of the training text, with a new head
    (for a base that was only pre-trained, or trained on another script). Small models learn theirs from the text."""
    language: str | None = Field(default=None, pattern=LANGUAGE)
    """The language, in English: what a server of the model answers to."""

    @model_validator(mode="after")
    def _consistent(self) -> CtcModel:
        check_pinned(self.base, self.revision)
        return self

    def group_problem(self, group: str) -> str | None:
        """Why `group` names no parameter group of this family; None when it does."""
        if re.fullmatch(r"front|encoder|lm_head|all|audio_top:[1-9]\d*", group):
            return None
        return f'"{group}" is no group of ctc; it has front, encoder, audio_top:N, lm_head, all'


def check_pinned(base: str, revision: str | None) -> None:
    """ValueError unless a repository has its commit, and nothing else has one."""
    hub = is_repository(base)
    if hub and revision is None:
        raise ValueError(f'revision is missing: pin the commit of {base}, for example revision: "7278e1e7..."')
    if not hub and revision is not None:
        raise ValueError(f"revision only goes with a Hugging Face repository, and {base} is none")


def is_made_here(base: str) -> bool:
    """Whether `base` is a small model from random weights, made on the spot."""
    return base in (TINY, TINY_PARAKEET)


def is_repository(base: str) -> bool:
    """Whether `base` is a Hugging Face repository id (`owner/name`), not `tiny` and not a path."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", base) is not None


ModelSpec = Annotated[Qwen3AsrModel | CtcModel, Field(discriminator="family")]
