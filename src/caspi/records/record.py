"""The record of a stage: written last, atomically; its existence means that the stage is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from caspi.errors import UserError
from caspi.files import digest, read_json, write_json

StageName = Literal["export", "audit", "train", "benchmark", "compare", "report"]
STAGES: tuple[StageName, ...] = ("export", "audit", "train", "benchmark", "compare", "report")


class Stored(BaseModel):
    """Base of what is read back: immutable; keys of a newer version are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Circumstances(Stored):
    """What may differ between two runs of the same stage on the same inputs. Not digested."""

    started: str
    """UTC, ISO 8601."""
    seconds: float
    host: str
    git: str | None
    """Revision of the checkout that Caspi runs from, with `-dirty` when it has changes."""
    versions: dict[str, str]
    figures: dict[str, Any] = {}
    """Timings and other measurements of this run: latency, throughput, GPU hours, cost."""
    outputs: dict[str, str] = {}
    """sha256 of the files written that tell of circumstances: the report's page has times in it."""


class Record(Stored):
    """What a stage read, what it made, what it found."""

    schema_version: Literal[1] = 1
    stage: StageName
    status: Literal["succeeded", "failed"]
    round: str
    spec: str
    """sha256 of the round."""
    seed: int
    inputs: dict[str, str]
    """sha256 of each thing read, by name: other records, source files, the parent's model."""
    outputs: dict[str, str] = {}
    """sha256 of each file written, by its path in the stage's folder."""
    results: dict[str, Any] = {}
    """The typed results of the stage (results.py), as JSON."""
    error: str | None = None
    """One line, when the stage failed."""
    circumstances: Circumstances

    @property
    def digest(self) -> str:
        """sha256 of everything but the circumstances: equal for equal work."""
        return digest(self.model_dump(mode="json", exclude={"circumstances"}))


def read_record(path: Path) -> Record | None:
    """The record at `path`; None when there is none. UserError when it is damaged."""
    if not path.exists():
        return None
    try:
        return Record.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{place}: {first['msg']}; delete the file to run the stage again", where=str(path)) from None


def write_record(path: Path, record: Record) -> None:
    write_json(path, record.model_dump(mode="json"))
