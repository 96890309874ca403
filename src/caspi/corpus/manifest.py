"""Utterances on disk: one JSON line each, the same bytes on every machine.

`audio` is `<source>/<path inside the source>`, with `#<row>` where that file is a table; the part before the
first slash is the name of a source or test set of the round, or `@export` for materialised audio. Nothing in a
manifest depends on where the data lies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.json

from caspi.errors import UserError
from caspi.files import atomic, json_line, read_json_lines


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of speech and what is said in it."""

    id: str
    """Unique in the round: `<source>/<row or file>`."""
    audio: str
    text: str
    """Normalised for training; as found in a test set."""
    seconds: float
    source: str
    domain: str
    recording: str | None = None
    speaker: str | None = None


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> int:
    """Write atomically; returns how many."""
    count = 0
    with atomic(path) as file:
        for utterance in utterances:
            file.write(manifest_line(utterance))
            count += 1
    return count


def manifest_line(utterance: Utterance) -> str:
    """One line of a manifest, newline included."""
    return json_line({name: getattr(utterance, name) for name in Utterance.__slots__})


def read_manifest(path: Path) -> list[Utterance]:
    """All utterances of a manifest; UserError names file, line and field."""
    return list(_utterances(path))


@dataclass(frozen=True, slots=True)
class Durations:
    """What a plan needs of a manifest: lengths, and how many of each source."""

    seconds: npt.NDArray[np.float64]
    by_source: dict[str, int]


def read_durations(path: Path, left_out: Collection[str] = ()) -> Durations:
    """Read only lengths and sources, without the utterances of these ids: 200,000 lines in a tenth of a second."""
    fields = [("seconds", pa.float64()), ("source", pa.string()), *([("id", pa.string())] if left_out else [])]
    schema = pa.schema(fields)
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.stat().st_size:
        return Durations(np.empty(0), {})
    try:
        table = pyarrow.json.read_json(path, parse_options=options)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a manifest ({str(error).splitlines()[0]})") from None
    if left_out:
        unwanted = pyarrow.compute.is_in(table["id"], value_set=pa.array(sorted(left_out), pa.string()))
        table = table.filter(pyarrow.compute.invert(unwanted))
    counted = pyarrow.compute.value_counts(table["source"]).to_pylist()
    return Durations(table["seconds"].to_numpy(), {one["values"]: one["counts"] for one in counted})


def _utterances(path: Path) -> Iterator[Utterance]:
    names = set(Utterance.__slots__)
    for number, values in enumerate(read_json_lines(path), start=1):
        where = f"{path}:{number}"
        missing = {"id", "audio", "text", "seconds", "source", "domain"} - values.keys()
        if missing:
            raise UserError(f"{where}: {', '.join(sorted(missing))} missing; the export writes them")
        for name in ("id", "audio", "text", "source", "domain"):
            if not isinstance(values[name], str):
                raise UserError(f"{where}: {name} = {values[name]!r} is not text")
        seconds = values["seconds"]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
            raise UserError(f"{where}: seconds = {seconds!r} is not a positive number")
        yield Utterance(**{name: value for name, value in values.items() if name in names})
