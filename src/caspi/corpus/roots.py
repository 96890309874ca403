"""Where the sources and test sets of a round lie on this machine, and what identifies them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from caspi.corpus.hub import snapshot
from caspi.corpus.sources import Shard, rows, shards
from caspi.corpus.tables import SUFFIXES
from caspi.errors import UserError
from caspi.files import digest, file_digest, write_json
from caspi.spec import RoundSpec
from caspi.spec.data import Source

EXPORT = "@export"
"""The root of materialised audio: the export's own folder."""


def roots(
    spec: RoundSpec, data_root: Path, export_folder: Path, only: Collection[str] | None = None
) -> dict[str, Path]:
    """Name of each source and test set (or `only` of those) -> its folder, and `@export`. What AudioReader takes.

    Sources of a materialised round are left out: its audio lies in the export.
    """
    found = {EXPORT: export_folder}
    for field, source in places(spec).items():
        if only is not None and source.name not in only:
            continue
        if not (spec.data.materialise and field.startswith("data.") and (export_folder / "train.jsonl").exists()):
            place = locate(source, data_root, field)
            found[source.name] = place.parent if place.is_file() else place
    return found


def places(spec: RoundSpec) -> dict[str, Source]:
    """Every source and test set by its field in the round file."""
    return {f"data.sources[{index}]": source for index, source in enumerate(spec.data.sources)} | {
        f"benchmark.sets[{index}]": test_set.source() for index, test_set in enumerate(spec.benchmark.sets)
    }


def locate(source: Source, data_root: Path, field: str) -> Path:
    """The folder or file of a source; hub snapshots are downloaded when missing."""
    if source.hub is not None:
        assert source.revision is not None, "the spec requires it"
        return snapshot(source.hub, source.revision, source.files)
    assert source.path is not None, "a source has a path or a hub"
    path = data_root / source.path
    if not path.exists():
        raise UserError(f'{field}.path = "{source.path}": no such file or folder; looked for {path}')
    return path


def identities(spec: RoundSpec, data_root: Path, cache: Path) -> dict[str, str]:
    """sha256 that stands for the content of each source and test set, by name.

    The commit for a repository. For local data the digests of its shards, and the sizes of the audio files that they
    list. `cache` keeps digests of unchanged files.
    """
    known = _Digests(cache)
    found = {
        source.name: _commit(source) if source.hub else _local(shards(source, locate(source, data_root, field)), known)
        for field, source in places(spec).items()
    }
    known.save()
    return found


def _commit(source: Source) -> str:
    return digest({"hub": source.hub, "revision": source.revision, "files": source.files})


def _local(found: list[Shard], known: _Digests) -> str:
    content: dict[str, str] = {shard.name: known.of(shard.path) for shard in found}
    for shard in found:
        if shard.path.suffix not in SUFFIXES:
            sizes = [row.data.stat().st_size if isinstance(row.data, Path) else -1 for row in rows(shard)]
            content[f"{shard.name} audio"] = digest(sizes)
    return digest(content)


class _Digests:
    """sha256 of files, remembered as long as size and modification time stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fresh: dict[str, str] = {}
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            stored = {}  # only a cache: a missing or damaged one costs time
        self.stored: Mapping[str, str] = stored if isinstance(stored, dict) else {}

    def of(self, path: Path) -> str:
        state = path.stat()
        key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
        if key not in self.fresh:
            self.fresh[key] = self.stored.get(key) or file_digest(path)
        return self.fresh[key]

    def save(self) -> None:
        if self.fresh.keys() - self.stored.keys():
            write_json(self.path, {**self.stored, **self.fresh})
