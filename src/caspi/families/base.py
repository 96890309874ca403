"""What a family gives so that the one engine can train it. docs/families.md walks through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from caspi.errors import UserError

Clip = npt.NDArray[np.float32]
"""Mono samples at 16 kHz in [-1, 1], shape [samples]."""

SAMPLE_RATE = 16_000


@dataclass(frozen=True, slots=True)
class Example:
    """Features and labels of one utterance, before padding."""

    features: npt.NDArray[np.float32]
    """[bins, frames] of the true length."""
    labels: tuple[int, ...]
    """Target token ids with the end token."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded micro-batch."""

    tensors: Mapping[str, torch.Tensor]
    """What the network's forward takes, by name."""
    tokens: int
    """Labelled tokens in it: the sum of len(labels) over its examples."""

    def to(self, device: torch.device) -> Batch:
        return Batch({k: v.to(device, non_blocking=True) for k, v in self.tensors.items()}, self.tokens)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a model heard."""

    text: str
    """The transcript, nothing silently repaired."""
    raw: str
    """The model's whole output, tags included."""
    language: str | None = None


class Speller(Protocol):
    """How a model writes text as tokens."""

    unknown: int | None
    """The token of what has no token; None when there is no such text."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Control tokens included."""
        ...

    def written(self, text: str) -> str:
        """All that the labels of an utterance say: prefix, text, end."""
        ...


class Model(Speller, Protocol):
    """A loaded model: weights and processor."""

    network: torch.nn.Module
    """forward(**batch.tensors) -> the SUM of the token losses, a scalar in fp32. What is sharded."""

    def groups(self, names: Sequence[str]) -> dict[str, list[torch.nn.Parameter]]:
        """Parameters of the named groups (`projector`, `llm_top:12`, ... or `all`; `lora` is the engine's own):
        disjoint, tied tensors once.

        UserError when a name asks for more than the model has.
        """
        ...

    def tied(self) -> list[str]:
        """Tied tensors in words, `lm_head is embed_tokens: both move`; found by identity, not by config."""
        ...

    def blocks(self) -> list[torch.nn.Module]:
        """The repeated layers, bottom up: what is sharded, gathered and recomputed one at a time."""
        ...

    def adapted(self, targets: Sequence[str]) -> str:
        """A regular expression that fully matches the names (in `network`) of the Linear modules that LoRA adapts,
        of those called `targets` (q_proj, ..., down_proj)."""
        ...

    def unfit(self, seconds: float, text: str) -> str | None:
        """Why an utterance of this length can't be trained on (`ctc: ...`), in the same few words for each that is
        left out for the same reason; None when it can."""
        ...

    def enable_recompute(self) -> None:
        """Recompute activations in the backward pass instead of keeping them. The engine asks for it on GPUs."""
        ...

    def example(self, clip: Clip, text: str) -> Example:
        """Features and labels; a pure function of its arguments. Of silence and no text too: what a process with
        nothing to do runs, for nothing, where weights are sharded."""
        ...

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad and mask. In every row the labelled tokens are exactly the labels."""
        ...

    def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
        """Greedy decoding, in order. The caller bounds how much audio one call gets."""
        ...

    def save(self, folder: Path) -> None:
        """Write the layout that the family's own ecosystem loads: weights (safetensors), config, processor,
        generation config. Not atomic: the caller gives a temporary folder and renames it."""
        ...


class Family(Protocol):
    """One kind of model. Stateless."""

    name: str

    def prepare(self, spec: Any, texts: Sequence[str], seed: int, folder: Path) -> Path:
        """The base model's folder, ready for `load`: downloaded at its pinned revision, local, or (`tiny`) made
        under `folder` from random weights with a tokenizer learnt from `texts`. Running it again is free."""
        ...

    def load(self, folder: Path, spec: Any, device: torch.device | str) -> Model:
        """Load a base or a Caspi checkpoint, in fp32. UserError for another family, layout or a missing file."""
        ...


def disjoint(groups: dict[str, list[torch.nn.Parameter]]) -> dict[str, list[torch.nn.Parameter]]:
    """The groups; UserError when a parameter is in two of them. By identity: sharding replaces storages."""
    moving = [id(parameter) for group in groups.values() for parameter in group]
    if len(set(moving)) < len(moving):
        raise UserError(f"groups {', '.join(groups)} overlap: a parameter has one learning rate")
    return groups
