"""A look at a JSONL of the upstream script, where it is here: languages, prompts, where its audio lies."""

from __future__ import annotations

import os
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from caspi.files import read_json_lines

LOOKED_AT = 1000  # rows whose audio is looked for


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list of utterances says about itself. Without the file all is empty."""

    path: Path
    """Whole."""
    root: Path
    """A folder that holds the list and its audio."""
    rows: int = 0
    languages: Set[str] = frozenset()
    """Of the prefixes `language X<asr_text>`; `None` is none."""
    prompt: str = ""
    """The system turn, when all rows have the same."""
    prompts: int = 0
    """Different ones."""
    misplaced: bool = False
    """Whether audio paths start from another folder than that of the list."""


def look_at(path: Path, started_in: Path) -> Listing:
    """UserError when the file is there but no JSONL. `started_in` is where the script resolved relative paths."""
    path = Path(os.path.normpath(Path.cwd() / path))  # links stay: the list is read by the name that it was given by
    if not path.is_file():
        return Listing(path, path.parent)
    languages: set[str] = set()
    prompts: set[str] = set()
    folders = {str(path.parent)}
    rows, misplaced = 0, False
    for rows, row in enumerate(read_json_lines(path), start=1):
        if prefix := re.match(r"language ([^<]+)<asr_text>", str(row.get("text", ""))):
            languages.add(prefix[1].strip())
        prompts.add(str(row.get("prompt") or ""))
        audio = str(row.get("audio", ""))
        if rows <= LOOKED_AT and not Path(audio).is_absolute():
            misplaced |= not (path.parent / audio).is_file() and (started_in / audio).is_file()
        folders.add(os.path.normpath((path.parent / audio).parent))
    root = Path(os.path.commonpath(folders))
    if root == Path(root.anchor):  # a source is a folder that is walked through: not the whole disk
        root = path.parent
    return Listing(
        path=path,
        root=root,
        rows=rows,
        languages=languages - {"None"},
        prompt=next(iter(prompts)) if len(prompts) == 1 else "",
        prompts=len(prompts),
        misplaced=misplaced,
    )
