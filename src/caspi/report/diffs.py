"""Word diffs that stay readable in right-to-left text and harmless with hostile text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Levenshtein

LONGEST = 1500  # characters of one text on the page


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of equal words, or one error."""

    kind: Literal["equal", "missing", "extra", "wrong"]
    reference: str
    """Empty for an extra word."""
    hypothesis: str
    """Empty for a missing word."""


def word_diff(reference: str, hypothesis: str) -> list[Piece]:
    """The fewest word errors that lead from reference to hypothesis, in reading order.

    Equal neighbours are one piece, so that Latin or numbers inside Hebrew keep their own order; each error is a
    piece of its own: `sum(piece.kind != "equal")` is the word edit distance.
    """
    return list(_pieces(reference.split(), hypothesis.split()))


def _pieces(reference: list[str], hypothesis: list[str]) -> Iterator[Piece]:
    for step in Levenshtein.opcodes(reference, hypothesis):
        wanted = reference[step.src_start : step.src_end]
        heard = hypothesis[step.dest_start : step.dest_end]
        match step.tag:
            case "equal":
                yield Piece("equal", " ".join(wanted), " ".join(heard))
            case "delete":
                yield from (Piece("missing", word, "") for word in wanted)
            case "insert":
                yield from (Piece("extra", "", word) for word in heard)
            case _:
                yield from (Piece("wrong", one, other) for one, other in zip(wanted, heard, strict=True))


def errors(pieces: list[Piece]) -> int:
    """Word errors in a diff."""
    return sum(piece.kind != "equal" for piece in pieces)


def direction(*texts: str) -> Literal["rtl", "ltr"]:
    """The direction that most strong characters of the texts have.

    Said outright and not left to `dir="auto"`, which looks past isolated words and goes by the first letter: one
    Latin name at the start would turn a Hebrew sentence around.
    """
    kinds = [unicodedata.bidirectional(character) for text in texts for character in text[:LONGEST]]
    return "rtl" if sum(kind in ("R", "AL") for kind in kinds) > kinds.count("L") else "ltr"


_KEPT = "\u200c\u200d" + "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u08e2"
"""Format characters that belong to the text: joiners, and the number and verse signs of Arabic, which have ink."""


def visible(text: str) -> str:
    """Text with its invisible characters shown as ⟨U+202E⟩, cut at LONGEST.

    Bidirectional controls would reorder what stands around them (an unmatched PDI even closes an element's
    isolation), control characters and lone surrogates can't stand in HTML at all.
    """
    cut = text[:LONGEST]
    shown = "".join(f"⟨U+{ord(c):04X}⟩" if _invisible(c) else c for c in cut)
    return shown if cut == text else f"{shown} … ({len(text) - LONGEST:,} more characters)"


def _invisible(character: str) -> bool:
    if character in _KEPT or character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
