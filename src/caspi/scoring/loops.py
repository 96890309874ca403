"""Hypotheses that repeat themselves. Looked for in RAW output: some backends silently cut repeats out of the text."""

from __future__ import annotations

import re
import zlib

REPEATS = 6
"""So often in a row nobody says the same words; one or two words need twice as many (no no no no ...)."""
COMPRESSION = 4.0
"""A text that shrinks more than this says hardly anything new. The first chapter of Genesis, about as repetitive as
people get, is at 2.5."""
SHORTEST = 200
"""Characters below which compression means nothing."""


def loops(raw: str) -> bool:
    """Whether the text goes round in circles: the same stretch many times in a row, or hardly anything new."""
    text = " ".join(raw.split())
    return _repeats(text) or compression(text) > COMPRESSION


def compression(text: str) -> float:
    """How many times smaller zlib makes it; 1.0 for a text too short to tell.

    One byte a letter: in UTF-8, as Whisper measures it, Hebrew shrinks by the script alone, and 2.4 would be near.
    """
    if len(text) < SHORTEST:
        return 1.0
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    data = bytes(letters[letter] % 256 for letter in text)
    return len(data) / len(zlib.compress(data, 9))


def _repeats(text: str) -> bool:
    words = text.split()
    if any(_run(words, size) >= (REPEATS if size > 2 else 2 * REPEATS) for size in range(1, 13)):
        return True
    return _CHARACTERS.search(text) is not None


def _run(words: list[str], size: int) -> int:
    """How often a stretch of `size` words stands in a row at most."""
    longest = same = 0
    for one, next_ in zip(words, words[size:], strict=False):
        same = same + 1 if one == next_ else 0
        longest = max(longest, same)
    return longest // size + 1


_CHARACTERS = re.compile(r"(\S{1,8}?)\1{15,}")
"""Without any spaces: ahahahah..., !!!!!!"""
