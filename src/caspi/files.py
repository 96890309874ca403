"""Files that are whole or absent: atomic writes, canonical JSON, digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from caspi.errors import UserError


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success it is flushed to disk and renamed over `path`.

    A reader sees the old content or the new one, never a part. On an exception nothing changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def no_space_left(error: BaseException) -> bool:
    """Whether the disk is full, or a quota. safetensors says it in words only."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"os error {number})" in str(error) for number in full)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text)


def write_json(path: Path, value: object) -> None:
    """Readable JSON with sorted keys, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def json_line(value: Mapping[str, object]) -> str:
    """One line of a .jsonl file, newline included. Key order is the writer's: stable for a dataclass."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a .jsonl file; a broken line is a UserError that names file and line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise UserError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
                yield value
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def canonical_json(value: object) -> bytes:
    """The bytes that are digested: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: object) -> str:
    """sha256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, names: Iterable[str] | None = None) -> str:
    """One sha256 over the relative names and digests of the files of a folder (all, or those named)."""
    files = (
        sorted(names)
        if names is not None
        else sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    )
    return digest({name: file_digest(folder / name) for name in files})
