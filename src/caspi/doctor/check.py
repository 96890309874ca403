"""What a check of the doctor is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from caspi.spec import ClusterSpec, RoundSpec

State = Literal["ok", "note", "blocked"]

Lines = Iterator[tuple[State, str]]
"""What a check yields. A check that can't be made says so as a note; it never passes silently."""


class Check(BaseModel):
    """One line of the doctor."""

    name: str
    state: State
    line: str


@dataclass(frozen=True, slots=True)
class Patient:
    """What the checks look at."""

    spec: RoundSpec
    cluster: ClusterSpec
    file: Path | None
    """The round file; None for a round directory."""
    data_root: Path
