"""What was indexed of one source: utterances on disk, their keys and where each one goes in memory (41 bytes each)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from caspi.corpus.index import read_part
from caspi.corpus.manifest import Utterance
from caspi.corpus.split import EVAL, TRAIN, Labels, key_of, text_key
from caspi.errors import UserError
from caspi.records.results import SourceLedger

DROPPED = -1


@dataclass(frozen=True, slots=True)
class Collected:
    """A kept utterance with its number in the collection."""

    number: int
    utterance: Utterance


class Collection:
    """The utterances of the parts of one source, each listed once, and the counts of what was dropped."""

    def __init__(self, name: str, where: str, parts: Sequence[Path]) -> None:
        self.name = name
        self.where = where
        """The field of the round file, for messages."""
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self._parts = parts
        self._scan()
        self.side = np.full(len(self.seconds), TRAIN, dtype=np.int8)
        self._drop_repeated()
        self._check_not_empty()

    def __iter__(self) -> Iterator[Collected]:
        """Kept utterances in the order of the source."""
        number = 0
        for part in self._parts:
            for line in read_part(part):
                if "read" not in line:
                    if self.side[number] != DROPPED:
                        yield Collected(number, Utterance(**line))
                    number += 1

    def drop(self, number: int, reason: str) -> None:
        assert self.side[number] != DROPPED, "dropped for one reason"
        self.side[number] = DROPPED
        self.dropped[reason] += 1

    def hours(self, side: int | None = None) -> float:
        """Of one side, or of all that is kept."""
        chosen = self.side != DROPPED if side is None else self.side == side
        return round(float(self.seconds[chosen].sum()) / 3600, 4)

    def ledger(self, trains: bool) -> SourceLedger:
        """The counts as they stand."""
        kept = int((self.side != DROPPED).sum())
        train, dev = (int((self.side == side).sum()) if trains else 0 for side in (TRAIN, EVAL))
        return SourceLedger(
            name=self.name,
            read=self.read,
            kept=kept,
            dropped=dict(sorted(self.dropped.items())),
            train=train,
            eval=dev,
            hours=self.hours(),
        )

    def _scan(self) -> None:
        recording, speaker, text, identity = (array("Q") for _ in range(4))
        seconds = array("d")
        for part in self._parts:
            for line in read_part(part):
                if "read" in line:
                    self.read += line["read"]
                    self.dropped.update(line["dropped"])
                    continue
                recording.append(key_of(line["recording"]))
                speaker.append(key_of(line["speaker"]))
                text.append(text_key(line["text"]))
                identity.append(key_of(line["id"]))
                seconds.append(line["seconds"])
        keys = [np.array(values, dtype=np.uint64) for values in (recording, speaker, text, identity)]
        self.labels = Labels(*keys)
        self.seconds = np.array(seconds, dtype=np.float64)

    def _drop_repeated(self) -> None:
        """A list that names a file twice: the first one counts."""
        first = np.unique(self.labels.identity, return_index=True)[1]
        repeated = np.ones(len(self.seconds), dtype=bool)
        repeated[first] = False
        for number in np.flatnonzero(repeated).tolist():
            self.drop(number, "listed twice")

    def _check_not_empty(self) -> None:
        """A source that gives nothing is a mistake, not a small source."""
        if not self.read:
            raise UserError(f"{self.where} ({self.name}): has no rows")
        if not (self.side != DROPPED).any():
            why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.dropped.items()))
            raise UserError(f"{self.where} ({self.name}): nothing is left of {self.read:,} rows: {why}")
