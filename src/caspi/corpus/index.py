"""Shard -> part: the utterances of one shard that pass the filters, and the count of those that don't."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caspi.corpus.audio import AudioError, seconds_of
from caspi.corpus.manifest import Utterance, manifest_line
from caspi.corpus.sources import Row, Shard, rows
from caspi.corpus.split import key_of
from caspi.corpus.text import normalise, why_empty
from caspi.files import atomic, json_line
from caspi.spec.data import Filters

UPDATE_ROWS = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """What happens to a row. A test set has neither normaliser nor filters, and is whole."""

    domain: str
    text: str | None = None
    keep: Filters | None = None
    subset: float = 1.0
    """Share of the rows that are looked at, drawn by `seed` and the id of each: in any order, from any shard."""
    seed: int = 0


def index_shard(shard: Shard, rules: Rules, part: Path, seen: Callable[[int], object] | None = None) -> int:
    """Write the part of a shard, atomically: a line for each utterance kept, and the counts in the last line.

    Only headers are read, no audio is decoded. `seen(n)` is called now and then with the rows done since. Returns
    how many rows there are.
    """
    dropped: Counter[str] = Counter()
    read = 0
    with atomic(part) as file:
        for row in rows(shard):
            read += 1
            try:
                file.write(manifest_line(_utterance(row, shard.source, rules)))
            except _Dropped as reason:
                dropped[str(reason)] += 1
            if seen and read % UPDATE_ROWS == 0:
                seen(UPDATE_ROWS)
        file.write(json_line({"read": read, "dropped": dict(sorted(dropped.items()))}))
    if seen:
        seen(read % UPDATE_ROWS)
    return read


def drawn(identity: str, share: float, seed: int) -> bool:
    """Whether an utterance is in the subset. A larger subset holds a smaller one of the same seed."""
    return key_of(f"subset {seed} {identity}") < share * 2**64


def read_part(part: Path) -> Iterator[dict[str, Any]]:
    """Lines of a part: utterances, then one with `read` and `dropped`. Whole, since it was written atomically."""
    with part.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


class _Dropped(Exception):
    """The reason why a row is not kept, as the ledger has it."""


def _utterance(row: Row, source: str, rules: Rules) -> Utterance:
    if rules.subset < 1 and not drawn(row.id, rules.subset, rules.seed):
        raise _Dropped("subset")
    text = normalise(rules.text, row.text) if rules.text else row.text.encode("utf-8", "ignore").decode().strip()
    if not text:
        raise _Dropped(why_empty(rules.text, row.text))
    if row.data is None:
        raise _Dropped("audio file missing")
    try:
        seconds = seconds_of(row.data, row.audio)
    except AudioError as error:
        raise _Dropped(error.reason) from None
    except OSError:
        raise _Dropped("audio file not readable") from None
    if rules.keep and (reason := _out_of_range(text, seconds, rules.keep)):
        raise _Dropped(reason)
    return Utterance(
        id=row.id,
        audio=row.audio,
        text=text,
        seconds=round(seconds, 6),
        source=source,
        domain=row.domain or rules.domain,
        recording=row.recording,
        speaker=row.speaker,
    )


def _out_of_range(text: str, seconds: float, keep: Filters) -> str | None:
    if seconds < keep.seconds[0]:
        return "too short"
    if seconds > keep.seconds[1]:
        return "too long"
    rate = len(text) / seconds
    if rate < keep.characters_per_second[0]:
        return "too few characters a second"
    if rate > keep.characters_per_second[1]:
        return "too many characters a second"
    return None
