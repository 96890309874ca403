"""References and hypotheses -> errors of each utterance, in words and in characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors in one unit, words or characters; arrays of shape [utterances]."""

    substitutions: Counts
    deletions: Counts
    insertions: Counts
    length: Counts
    """Of the reference."""

    @property
    def total(self) -> Counts:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """All errors over all of the references. Without any reference words each insertion counts as 1.0."""
        return float(self.total.sum() / max(1, self.length.sum()))

    def select(self, chosen: npt.NDArray[np.bool_]) -> Errors:
        return Errors(self.substitutions[chosen], self.deletions[chosen], self.insertions[chosen], self.length[chosen])


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Errors of each utterance. An empty hypothesis is all deletions, an empty reference all insertions."""

    words: Errors
    characters: Errors

    @property
    def wer(self) -> float:
        return self.words.rate

    @property
    def cer(self) -> float:
        return self.characters.rate

    def select(self, chosen: npt.NDArray[np.bool_]) -> ErrorCounts:
        """Those where `chosen` is true."""
        return ErrorCounts(self.words.select(chosen), self.characters.select(chosen))

    def __len__(self) -> int:
        return len(self.words.length)


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Levenshtein errors of each pair. Words are what whitespace separates; characters include the spaces between.

    Texts are compared as they are: apply a profile before.
    """
    words, characters = [], []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        reference_words, hypothesis_words = reference.split(), hypothesis.split()
        words.append(_errors(reference_words, hypothesis_words))
        characters.append(_errors(" ".join(reference_words), " ".join(hypothesis_words)))
    return ErrorCounts(_columns(words), _columns(characters))


def _errors(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int, int, int]:
    """(substitutions, deletions, insertions, length of the reference) of one alignment of least errors."""
    length, surplus = len(reference), len(hypothesis) - len(reference)
    if reference == hypothesis:
        return 0, 0, 0, length
    edits = Levenshtein.editops(reference, hypothesis)
    deletions = sum(edit[0] == "delete" for edit in edits.as_list())
    insertions = surplus + deletions
    return len(edits) - deletions - insertions, deletions, insertions, length


def _columns(rows: list[tuple[int, int, int, int]]) -> Errors:
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Errors(*(np.ascontiguousarray(column) for column in table.T))
