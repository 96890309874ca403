"""Parquet and Arrow files, read in batches of bounded size, forward or from any row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caspi.errors import UserError

SUFFIXES = (".parquet", ".arrow")
BATCH_BYTES = 1 << 20
"""How much of a table is decoded at a time, about: what stays in the processor's cache is read three times as fast.
Arrow also holds the page that it lies in, which is whatever the writer of the file chose; mostly 1 to 20 MB."""


class Table:
    """An open table. Groups are what can be reached directly: row groups in Parquet, record batches in Arrow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parquet: pq.ParquetFile | None = None
        self._arrow: list[pa.RecordBatch] = []
        try:
            if path.suffix == ".parquet":
                # pre_buffer would read whole column chunks ahead: all of a 400 MB row group.
                self._parquet = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
                self.schema: pa.Schema = self._parquet.schema_arrow
                meta = self._parquet.metadata
                sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
            else:
                self.schema, self._arrow = _map_arrow(path)
                sizes = [batch.num_rows for batch in self._arrow]
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from None
        self._ends = _running_sum(sizes)

    @property
    def rows(self) -> int:
        return self._ends[-1] if self._ends else 0

    def batches(self, columns: Sequence[str], row: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of its first row, batch) from the group that `row` lies in to the end."""
        for group in range(self.group_of(row), len(self._ends)):
            yield from self.group(group, columns)

    def group_of(self, row: int) -> int:
        return bisect_right(self._ends, row)

    def group(self, group: int, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = self._ends[group - 1] if group else 0
        try:
            if self._parquet is None:
                yield start, self._arrow[group].select(list(columns))
                return
            for batch in self._parquet.iter_batches(
                self._batch_rows(group), row_groups=[group], columns=list(columns), use_threads=False
            ):
                yield start, batch
                start += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(self.path, error, f" from row {start} on") from None

    def _batch_rows(self, group: int) -> int:
        """Rows that make about BATCH_BYTES."""
        assert self._parquet is not None
        meta = self._parquet.metadata.row_group(group)
        return max(1, int(meta.num_rows * BATCH_BYTES // max(1, meta.total_byte_size)))

    @cached_property
    def audio_column(self) -> str | None:
        """The column that holds audio, when there is no doubt: `audio`, or the only one with bytes."""
        if "audio" in self.schema.names:
            return "audio"
        found = [field.name for field in self.schema if _holds_bytes(field.type)]
        return found[0] if len(found) == 1 else None


def encoded_audio(batch: pa.RecordBatch, column: str, index: int) -> tuple[bytes | None, str | None]:
    """(bytes as stored, path as stored) of one row: a struct {bytes, path}, bytes alone, or a path alone."""
    value: Any = batch.column(column)[index]
    if pa.types.is_struct(value.type):
        names = [field.name for field in value.type]
        parts = value if value.is_valid else {}
        data = parts["bytes"].as_py() if parts and "bytes" in names else None
        path = parts["path"].as_py() if parts and "path" in names else None
        return data, path
    plain = value.as_py()
    return (None, plain) if isinstance(plain, str) else (plain, None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in [field.name for field in kind]
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _map_arrow(path: Path) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """All record batches of an Arrow file or stream (`datasets` writes streams). Mapped, not read."""
    source = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(source)
        return file.schema, [file.get_batch(index) for index in range(file.num_record_batches)]
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, list(stream)


def _unreadable(path: Path, error: Exception, place: str = "") -> UserError:
    with path.open("rb") as file:
        head = file.read(40)
    if head.startswith(b"version https://git-lfs"):
        return UserError(f"{path}: is a Git LFS pointer, not the data; run `git lfs pull` there")
    if not head:
        return UserError(f"{path}: is empty; download or copy it again")
    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    why = " ".join(str(error).split())[:160]
    return UserError(f"{path}: not readable as {kind}{place} ({why}); download or copy it again")


def _running_sum(sizes: Sequence[int]) -> list[int]:
    total, ends = 0, []
    for size in sizes:
        total += size
        ends.append(total)
    return ends
