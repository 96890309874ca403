"""How many parameters a base model has, block by block, and what it needs to remember; known without torch.

`python -m caspi.families.counts --write` counts the known bases on torch's meta device (shapes, no memory) and
writes counts.json beside this file; a test counts again. Never type such a number.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from caspi.families.counts_ctc import CtcCounts
from caspi.families.counts_qwen3 import Qwen3Counts
from caspi.files import read_json, write_json
from caspi.spec.models import ModelSpec, is_repository

STORED = Path(__file__).with_name("counts.json")


class Counts(Protocol):
    """What a plan asks of a base model."""

    @property
    def total(self) -> int:
        """Parameters; tied tensors counted once."""
        ...

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        ...

    @property
    def head_rows(self) -> int:
        """How many tokens the output head knows."""
        ...

    @property
    def blocks(self) -> tuple[int, ...]:
        """Parameters of each repeated layer: where weights are sharded, what is gathered one at a time."""
        ...

    def group(self, name: str) -> int:
        """Parameters of a group as a round names it; UserError when it asks for more layers than there are."""
        ...

    def adapters(self, targets: Sequence[str]) -> int:
        """Parameters that LoRA adds beside these matrices, for each unit of its rank."""
        ...

    def activation_bytes(self, recompute: bool, longest: float) -> float:
        """Bytes a padded second that the forward pass keeps for the backward pass, in utterances of at most `longest`
        seconds. With recomputation (on GPUs, in bf16) a layer keeps its input, and one layer at a time is whole."""
        ...


KINDS: Mapping[str, Any] = {"qwen3-asr": Qwen3Counts, "ctc": CtcCounts}
"""Family -> its counts: a dataclass with `count(config)`, `known()`, `read(values)` and `recognises(config)`."""


def parameter_counts(model: ModelSpec) -> Counts | None:
    """Counts of a round's base: stored for the known ones, counted from its config.json where that is on this
    machine (imports torch), None where it is not."""
    kind = KINDS[model.family]
    stored: Mapping[str, Any] = read_json(STORED)[model.family]
    if model.base in stored:
        known: Counts = kind.read(stored[model.base])
        return known
    config = _local_config(model)
    if config is None:
        return None
    values = read_json(config)
    if not isinstance(values, dict) or not kind.recognises(values):
        return None  # `Family.load` says what is wrong with it
    counts: Counts = kind.count(values)
    return counts


def count_known() -> dict[str, dict[str, Any]]:
    """What counts.json holds: family -> base -> counts."""
    return {
        family: {base: asdict(kind.count(config)) for base, config in kind.known().items()}
        for family, kind in KINDS.items()
    }


def _local_config(model: ModelSpec) -> Path | None:
    folder = Path(model.base).expanduser()
    if folder.is_dir() or not is_repository(model.base):
        config = folder / "config.json"
        return config if config.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.base, "config.json", revision=model.revision)
    return Path(cached) if isinstance(cached, str) else None


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m caspi.families.counts --write")
    write_json(STORED, count_known())
