"""Remarks on a converted round, by the field that they stand above."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH = 118


KINDS = ("corrected: ", "assumed: ", "to do: ", "not carried over: ")
"""How remarks begin that people must hear of; others only explain a line of the file."""


@dataclass(slots=True)
class Notes:
    """Remarks by the field that they stand above; "" is the head of the file."""

    by_place: dict[str, list[str]] = field(default_factory=dict)

    def say(self, place: str, text: str) -> None:
        self.by_place.setdefault(place, []).append(text)

    def lines(self, place: str, indent: int) -> list[str]:
        return [line for text in self.by_place.get(place, ()) for line in _comment(text, indent)]

    def all(self) -> list[str]:
        return [text for texts in self.by_place.values() for text in texts if text.startswith(KINDS)]


def plain(text: str) -> str:
    """Text as YAML: as it is where that is safe, in quotes elsewhere."""
    safe = re.fullmatch(r"[A-Za-z./][\w./-]*", text) and text.lower() not in (
        "true",
        "false",
        "null",
        "yes",
        "no",
        "on",
        "off",
    )
    return text if safe else json.dumps(text, ensure_ascii=False)


def _comment(text: str, indent: int) -> Sequence[str]:
    lead = " " * indent + "# "
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=lead, subsequent_indent=lead, break_on_hyphens=False
    )
