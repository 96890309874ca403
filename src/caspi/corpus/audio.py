"""Encoded audio -> mono float32 at 16 kHz, without FFmpeg: libsndfile decodes, soxr resamples."""

from __future__ import annotations

import io
import os
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile
import soxr

from caspi.corpus.containers import cut_short, foreign_format, suffix_of
from caspi.corpus.tables import SUFFIXES, Table, encoded_audio
from caspi.errors import UserError

Clip = npt.NDArray[np.float32]
"""Mono samples at 16 kHz in [-1, 1], shape [samples]."""

SAMPLE_RATE = 16_000
OPEN_TABLES = 8


class AudioError(UserError):
    """One clip that can't be used. `reason` is its word in the ledger; the message has the details."""

    def __init__(self, reason: str, detail: str, where: str = "") -> None:
        super().__init__(detail, where=where)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioError, (self.reason, self.problems[0], self.where)


class AudioReader:
    """Reads clips by their reference, `<source>/<path inside it>` with `#<row>` in a table.

    Holds at most a few open tables and one batch of rows, so reading rows in order is a stream; picklable.
    """

    def __init__(self, roots: Mapping[str, Path]) -> None:
        self.roots = dict(roots)
        self._tables: OrderedDict[Path, Table] = OrderedDict()
        self._cursor = _Cursor()

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioReader, (self.roots,)

    def read(self, audio: str) -> Clip:
        """The clip, decoded. AudioError when it can't be."""
        return decode(self.encoded(audio)[0], audio)

    def encoded(self, audio: str) -> tuple[bytes, str]:
        """The bytes as stored, and the suffix of their format, such as ".mp3"."""
        path, row, column = self._resolve(audio)
        data = self._row(path, row, column, audio) if row is not None else _file_bytes(path, audio)
        return data, suffix_of(data)

    def _resolve(self, audio: str) -> tuple[Path, int | None, str | None]:
        source, _, inside = audio.partition("/")
        if source not in self.roots:
            raise UserError(f'"{source}" is no source of this round; it has {", ".join(self.roots)}', where=audio)
        file, mark, fragment = inside.rpartition("#")
        row: int | None = None
        column = ""
        if mark and file.endswith(SUFFIXES):
            number, _, column = fragment.partition(":")
            if not number.isdecimal():
                raise UserError(f'"{fragment}" is no row number', where=audio)
            inside, row = file, int(number)
        if ".." in PurePosixPath(inside).parts or inside.startswith("/"):
            raise UserError("the path leaves its source", where=audio)
        return self.roots[source] / inside, row, column or None

    def _row(self, path: Path, row: int, column: str | None, audio: str) -> bytes:
        table = self._table(path, audio)
        column = column or table.audio_column
        if column is None or column not in table.schema.names:
            raise UserError(f"no audio column; it has {', '.join(table.schema.names)}", where=audio)
        if row >= table.rows:
            raise UserError(f"there is no such row, it has {table.rows}; has the file changed?", where=audio)
        data, _ = encoded_audio(*self._cursor.at(table, column, row))
        if data is None:
            raise AudioError("not decodable", "the row has no audio", audio)
        return data

    def _table(self, path: Path, audio: str) -> Table:
        if path not in self._tables:
            if not path.is_file():
                raise UserError(f"no such file: {path}", where=audio)
            self._tables[path] = Table(path)
            if len(self._tables) > OPEN_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(path)
        return self._tables[path]


class _Cursor:
    """The batch of rows in hand. Moving forward in a row group reads on; anything else starts at its group."""

    def __init__(self) -> None:
        self._place: tuple[Table, str, int] | None = None
        self._stream: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._start = 0
        self._batch: pa.RecordBatch | None = None

    def at(self, table: Table, column: str, row: int) -> tuple[pa.RecordBatch, str, int]:
        place = (table, column, table.group_of(row))
        if place != self._place or row < self._start:
            self._place, self._batch = place, None
            self._stream = table.group(place[2], [column])
        while self._batch is None or row >= self._start + self._batch.num_rows:
            self._batch = None  # freed before the next one is read
            self._start, self._batch = next(self._stream)
        return self._batch, column, row - self._start


def decode(data: bytes, where: str = "") -> Clip:
    """Encoded bytes -> clip. Channels are averaged; resampling is soxr VHQ. AudioError says what is wrong."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise _undecodable(data, error, where) from None
    clip: Clip = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if not clip.size:
        raise AudioError("no samples", "the audio has no samples", where)
    peak = float(np.abs(clip).max())
    if not np.isfinite(peak) or peak > 16:
        raise AudioError("not decodable", f"samples reach {peak:g}; audio lies in [-1, 1]", where)
    if rate != SAMPLE_RATE:
        clip = soxr.resample(clip, rate, SAMPLE_RATE, "VHQ")
        peak = 2.0  # resampling may overshoot
    return np.clip(clip, -1.0, 1.0) if peak > 1 else np.ascontiguousarray(clip)


def seconds_of(data: bytes | Path, where: str = "") -> float:
    """Duration by header and end alone, nothing is decoded. AudioError when it can't be read or promises too much."""
    with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as file:
        if missing := cut_short(file):
            raise AudioError("cut short", missing, where)
        file.seek(0)
        silenced = _mpg123_silenced() if suffix_of(file.read(64)) == ".mp3" else nullcontext()
        file.seek(0)
        try:
            with silenced, soundfile.SoundFile(file) as sound:
                frames, rate = sound.frames, sound.samplerate
                if sound.format == "FLAC" and frames > 0:
                    sound.seek(frames - 1)  # its header has no size in bytes; a block that is gone can't be found
        except (soundfile.LibsndfileError, RuntimeError) as error:
            file.seek(0)
            raise _undecodable(file.read(64), error, where) from None
    if frames <= 0 or rate <= 0:
        raise AudioError("no samples", "the audio has no samples", where)
    return float(frames / rate)


@contextmanager
def _mpg123_silenced() -> Iterator[None]:
    """libmpg123 complains about broken files on file descriptor 2 by itself; the ledger says it better."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def _file_bytes(path: Path, audio: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AudioError("audio file missing", f"{error.strerror}: {path}", audio) from None


def _undecodable(data: bytes, error: Exception, where: str) -> AudioError:
    if not data:
        return AudioError("no samples", "the audio is empty (0 bytes)", where)
    if name := foreign_format(data):
        way_out = "convert it once, for example `ffmpeg -i clip -ar 16000 -ac 1 clip.flac`"
        return AudioError(
            f"format not supported: {name}", f"{name} is not a format that is decoded here; {way_out}", where
        )
    why = " ".join(str(error).split()).rpartition(": ")[2][:120]  # before the colon stands the address of the buffer
    return AudioError("not decodable", f"not decodable ({why or 'damaged data'})", where)
