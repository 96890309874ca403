"""The model part of a round: one type for each family, told apart by `family`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from caspi.spec.values import Frozen

TINY = "tiny"


class Qwen3AsrModel(Frozen):
    """Qwen3-ASR: an audio encoder, a projector and a Qwen3 language model."""

    family: Literal["qwen3-asr"]
    """Which kind of model."""
    base: str = Field(min_length=1)
    """A Hugging Face repository, a local folder in the qwen-asr layout, or `tiny`: a small model from random
    weights, made on the spot with the same code."""
    revision: str | None = None
    """The commit of the repository. Required for a repository; a branch name moves, and `caspi doctor` says so."""
    language: str = Field(pattern=r"^[A-Z][A-Za-z]*( [A-Z][A-Za-z]*)*$")
    """The language as it stands in the training prefix: `language Hebrew<asr_text>...`. Free text, in English."""
    context: str = ""
    """The text of the system turn, the same for every utterance."""

    @model_validator(mode="after")
    def _pinned(self) -> Qwen3AsrModel:
        hub = is_repository(self.base)
        if hub and self.revision is None:
            raise ValueError(f'revision is missing: pin the commit of {self.base}, for example revision: "7278e1e7..."')
        if not hub and self.revision is not None:
            raise ValueError(f"revision only goes with a Hugging Face repository, and {self.base} is none")
        return self

    def group_problem(self, group: str) -> str | None:
        """Why `group` names no parameter group of this family; None when it does."""
        if re.fullmatch(r"projector|lm_head|all|(llm_top|audio_top):[1-9]\d*", group):
            return None
        return f'"{group}" is no group of qwen3-asr; it has projector, llm_top:N, lm_head, audio_top:N, all'


def is_repository(base: str) -> bool:
    """Whether `base` is a Hugging Face repository id (`owner/name`), not `tiny` and not a path."""
    return base != TINY and re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", base) is not None


ModelSpec = Annotated[Qwen3AsrModel, Field(discriminator="family")]
