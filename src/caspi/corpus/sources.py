"""Rows of a source, streamed: Hugging Face Parquet or Arrow, JSONL of the upstream format, a folder with a TSV.

A shard is one file that lists utterances. Rows come in the order of the shard, nothing is decoded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caspi.corpus.tables import SUFFIXES, Table, encoded_audio
from caspi.errors import UserError
from caspi.files import read_json_lines
from caspi.spec.data import Source

KINDS = {".parquet": "Parquet", ".arrow": "Arrow", ".jsonl": "JSONL", ".tsv": "TSV"}

USUAL_COLUMNS = {
    "audio": ("audio", "audio_filepath", "audio_path", "path", "file", "filename"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "recording": ("recording", "recording_id"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
"""What columns are usually called. `domain` is only read when `columns` names it: a source has a domain."""


@dataclass(frozen=True, slots=True)
class Row:
    """An utterance as a source has it."""

    id: str
    audio: str
    """The reference that AudioReader takes."""
    data: bytes | Path | None
    """The encoded audio, or the file that holds it; None when there is none."""
    text: str
    recording: str | None
    speaker: str | None
    domain: str | None


@dataclass(frozen=True, slots=True)
class Shard:
    """One file that lists utterances."""

    source: str
    root: Path
    name: str
    """Path inside the source, with forward slashes."""
    columns: Mapping[str, str]

    @property
    def path(self) -> Path:
        return self.root / self.name


def shards(source: Source, root: Path) -> list[Shard]:
    """The shards of a source under its root (a folder, or one file), sorted by name.

    UserError when there are none, or of several kinds.
    """
    if root.is_file():
        found = [root.name] if root.suffix in KINDS else []
        root = root.parent
    else:
        matches = file_pattern(source.files).fullmatch
        found = sorted(name for name in _names_under(root) if Path(name).suffix in KINDS and matches(name))
    kinds = sorted({Path(name).suffix for name in found})
    if not kinds:
        raise UserError(
            f"nothing to read: no {', '.join(KINDS)} file matches files: {source.files}",
            where=f"{source.name} ({root})",
        )
    if len(kinds) > 1 or (kinds[0] == ".tsv" and len(found) > 1):
        some = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise UserError(f"holds {some}: say which to read with files: ...", where=f"{source.name} ({root})")
    columns: dict[str, str] = dict(source.columns.items())
    return [Shard(source.name, root, name, columns) for name in found]


def file_pattern(glob: str) -> re.Pattern[str]:
    """A glob over forward-slash paths as a pattern: `*` stays inside a folder, `**/` spans folders."""
    out, at = "", 0
    while at < len(glob):
        if glob.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif glob.startswith("**", at):
            out, at = out + ".*", at + 2
        else:
            out += {"*": "[^/]*", "?": "[^/]"}.get(glob[at], re.escape(glob[at]))
            at += 1
    return re.compile(out)


def count(shard: Shard) -> int | None:
    """How many rows, where the file says so by itself."""
    return Table(shard.path).rows if shard.path.suffix in SUFFIXES else None


def rows(shard: Shard) -> Iterator[Row]:
    """All rows of a shard. UserError for a broken file or a missing column; a broken row is the caller's to judge."""
    match shard.path.suffix:
        case ".jsonl":
            return _jsonl_rows(shard)
        case ".tsv":
            return _tsv_rows(shard)
        case _:
            return _table_rows(shard)


def _table_rows(shard: Shard) -> Iterator[Row]:
    table = Table(shard.path)
    columns = _find_columns(shard, table.schema.names)
    column = columns["audio"]
    fragment = "" if column == table.audio_column else f":{column}"
    others = {role: name for role, name in columns.items() if role != "audio"}
    prefix = f"{shard.source}/{shard.name}"
    stem = prefix.removesuffix(shard.path.suffix)
    for start, batch in table.batches(list(columns.values())):
        values = {role: batch.column(name).to_pylist() for role, name in others.items()}
        for index in range(batch.num_rows):
            row = start + index
            data, stored = encoded_audio(batch, column, index)
            where = f"{prefix}#{row}{fragment}"
            encoded: bytes | Path | None = data
            if data is None and stored:
                where, encoded = _beside(shard, stored, f"{shard.path}#{row}")
            elif data is not None and not isinstance(data, bytes):
                raise UserError(
                    f'column "{column}" holds {type(data).__name__}, not audio; say which with columns: {{audio: ...}}',
                    where=str(shard.path),
                )
            got = {role: column_values[index] for role, column_values in values.items()}
            yield Row(id=f"{stem}/{row}", audio=where, data=encoded, **_words(got, shard, row))


def _jsonl_rows(shard: Shard) -> Iterator[Row]:
    columns: dict[str, str] | None = None
    for number, values in enumerate(read_json_lines(shard.path), start=1):
        columns = columns or _find_columns(shard, list(values))
        audio = values.get(columns["audio"])
        got = {role: values.get(name) for role, name in columns.items() if role != "audio"}
        yield _file_row(shard, number, audio, got)


def _tsv_rows(shard: Shard) -> Iterator[Row]:
    try:
        with shard.path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline().rstrip("\r\n").split("\t")
            columns = _find_columns(shard, header)
            places = {role: header.index(name) for role, name in columns.items()}
            clips = "clips/" if (shard.path.parent / "clips").is_dir() else ""
            for number, line in enumerate(file, start=2):
                cells = line.rstrip("\r\n").split("\t")
                if len(cells) != len(header):
                    raise UserError(f"{shard.path}:{number}: {len(cells)} cells, the header has {len(header)}")
                got: dict[str, Any] = {role: cells[place] for role, place in places.items()}
                audio = got.pop("audio")
                plain = not clips or audio.startswith((clips, "/"))
                yield _file_row(shard, number, audio if plain else clips + audio, got)
    except UnicodeDecodeError as error:
        raise UserError(f"{shard.path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _file_row(shard: Shard, number: int, audio: object, got: Mapping[str, Any]) -> Row:
    """A row whose audio is a file of its own."""
    words = _words(got, shard, number)
    if not isinstance(audio, str) or not audio.strip():
        identity = f"{shard.source}/{shard.name}/{number}"
        return Row(id=identity, audio=identity, data=None, **words)
    where, data = _beside(shard, audio, f"{shard.path}:{number}")
    return Row(id=where, audio=where, data=data, **words)


def _beside(shard: Shard, audio: str, line: str) -> tuple[str, Path | None]:
    """(reference, file) of a path that a shard names: relative to the shard's folder, or absolute under the root."""
    path = os.path.normpath(shard.path.parent / audio)
    inside = os.path.relpath(path, shard.root)
    if inside.startswith("..") or "\0" in audio:
        raise UserError(
            f"{line}: {audio!r} lies outside of the source {shard.root}; set path to a folder above both, "
            "and files to the list"
        )
    return f"{shard.source}/{Path(inside).as_posix()}", Path(path) if Path(path).is_file() else None


_PREFIX = re.compile(r"^language [^<]*<asr_text>")


def _words(got: Mapping[str, Any], shard: Shard, row: int) -> dict[str, Any]:
    """Text and labels of a row. Numbers are fine as labels, but text has to be text."""
    text = got["text"]
    if text is not None and not isinstance(text, str):
        raise UserError(
            f"{shard.path}, row {row}: the text is {type(text).__name__} ({str(text)[:40]}); "
            "name the column of the transcript: columns: {text: ...}"
        )
    labels = {role: _label(got.get(role)) for role in ("recording", "speaker", "domain")}
    return {"text": _PREFIX.sub("", text or ""), **labels}


def _label(value: object) -> str | None:
    """A label as text; what is empty is missing."""
    text = "" if value is None else str(value).encode("utf-8", "ignore").decode().strip()
    return text or None


def _find_columns(shard: Shard, there: Sequence[str]) -> dict[str, str]:
    """Role -> column. UserError lists what is missing and what there is."""
    problems, found = [], {}
    has = f"it has {', '.join(there[:30]) or 'none'}"
    for role in ("audio", "text", "recording", "speaker", "domain"):
        if named := shard.columns.get(role):
            if named not in there:
                problems.append(f'columns.{role} = "{named}": there is no such column; {has}')
            found[role] = named
        elif usual := [name for name in USUAL_COLUMNS.get(role, ()) if name in there]:
            found[role] = usual[0]
        elif role in ("audio", "text"):
            problems.append(
                f"no column is called {' or '.join(USUAL_COLUMNS[role][:3])}; {has}; "
                f"say which is it with columns: {{{role}: ...}}"
            )
    if problems:
        raise UserError(*problems, where=str(shard.path))
    return found


def _names_under(root: Path) -> Iterator[str]:
    """All files of a folder, hidden ones left out, as forward-slash paths."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(folder).relative_to(root).as_posix()
        for name in files:
            if not name.startswith("."):
                yield name if inside == "." else f"{inside}/{name}"
