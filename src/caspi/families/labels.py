"""Whether a model is taught what it should be: what `caspi doctor` checks on a real batch before money is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from caspi.families.base import Clip, Model

IGNORED = -100
"""A position without a label."""


class Speller(Protocol):
    """How a model writes text as tokens; every Model is one."""

    unknown: int | None
    """The token of what has no token; None when there is no such text."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Control tokens included."""
        ...

    def written(self, text: str) -> str:
        """All that the labels of an utterance say: prefix, text, end."""
        ...


class TrainableSpeller(Model, Speller, Protocol):
    """A Model that can be asked how it writes."""


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What texts are after encoding and decoding."""

    changed: list[tuple[str, str]]
    """(text, what it came back as), where they differ."""
    tokens: int
    unknown: int

    @property
    def unknown_rate(self) -> float:
        return self.unknown / self.tokens if self.tokens else 0.0


def round_trip(model: Speller, texts: Sequence[str]) -> RoundTrip:
    """Encode and decode each text, as training labels are."""
    encoded = [model.encode(text) for text in texts]
    decoded = [model.decode(ids) for ids in encoded]
    return RoundTrip(
        changed=[(text, back) for text, back in zip(texts, decoded, strict=True) if text != back],
        tokens=sum(map(len, encoded)),
        unknown=sum(ids.count(model.unknown) for ids in encoded if model.unknown is not None),
    )


def check_labels(model: TrainableSpeller, clips: Sequence[Clip], texts: Sequence[str]) -> list[str]:
    """Problems with the labels of these utterances as one batch; none when every row is labelled with its text
    and end token, and with nothing else."""
    batch = model.collate([model.example(clip, text) for clip, text in zip(clips, texts, strict=True)])
    labels = batch.tensors["labels"]
    problems = label_problems(model, labels, texts)
    labelled = int((labels != IGNORED).sum())
    if labelled != batch.tokens:
        problems.append(f"the batch says {batch.tokens} labelled tokens, and {labelled} are labelled")
    return problems


def label_problems(model: Speller, labels: torch.Tensor, texts: Sequence[str]) -> list[str]:
    """Rows of `labels` ([batch, time], IGNORED where there is none) that don't say exactly their text."""
    problems = []
    for row, (line, text) in enumerate(zip(labels, texts, strict=True), start=1):
        said = model.decode(line[line != IGNORED].tolist())
        if said != model.written(text):
            problems.append(
                f"row {row}: the labels say {_short(said)!r}, and should say {_short(model.written(text))!r}"
            )
    return problems


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:38]} ... {text[-38:]}"
