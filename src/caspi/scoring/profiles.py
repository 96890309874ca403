"""Text rules for scoring. A WER without the name of its profile means nothing, so every score carries one.

What comes out is lower-case words joined by one space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from caspi.spec.data import Profile


def apply(profile: Profile, text: str) -> str:
    """The text as `profile` compares it: words joined by single spaces."""
    if profile == "ivrit-leaderboard":
        text = _without_brackets(text)
    rule = RULES[profile]
    return " ".join(filter(None, [rule(word) for word in text.split()]))


# Each rule takes what stands between two spaces and gives no word, one, or several. Most words of a language are
# seen again and again, so that remembering them makes scoring several times faster.


@lru_cache(1 << 16)
def _plain(word: str) -> str:
    """Case and punctuation don't count (don't and dont are one word). Marks do: in many languages they are letters."""
    word = unicodedata.normalize("NFKC", word).lower()
    word = _APOSTROPHE.sub("", word).translate(_WITHOUT_PUNCTUATION)
    return _joined(unicodedata.normalize("NFKC", word))


@lru_cache(1 << 16)
def _ivrit_leaderboard(word: str) -> str:
    """The ivrit.ai leaderboard's own rules, its quirks included, so that figures can be held against it.

    In this order: bidi and zero-width characters are deleted; vowel points, but neither meteg, rafe nor
    cantillation; ASCII quotes, but neither geresh nor gershayim; then Whisper's BasicTextNormalizer: lower case,
    words in brackets deleted, NFKC, and marks, symbols and punctuation each become a space. So צה"ל and צה״ל
    are scored as different words; `hebrew-fair` is the profile without such quirks.
    """
    word = unicodedata.normalize("NFKC", word.translate(_IVRIT_DELETED).lower())
    return _joined(word.translate(_WITHOUT_MARKS_AND_SYMBOLS).lower())


def _without_brackets(text: str) -> str:
    """The one rule of the leaderboard that sees more than a word. A quote or point in a bracket changes nothing."""
    if not _BRACKET.search(text):
        return text
    return _ROUND_BRACKETS.sub("", _BRACKETS.sub("", text.translate(_IVRIT_DELETED).lower()))


@lru_cache(1 << 16)
def _hebrew_fair(word: str) -> str:
    """What a reader of Hebrew would call the same words.

    Points and cantillation are deleted (category Mn only: maqaf and paseq lie between them and are punctuation);
    maqaf and hyphens are spaces; quotes of any kind inside a word (צה״ל, צ'ק) and a geresh after it are deleted,
    all other punctuation is a space.
    """
    word = unicodedata.normalize("NFKC", word).lower().translate(_UNIFIED)
    word = unicodedata.normalize("NFKD", word).translate(_WITHOUT_POINTS)
    word = _INSIDE_WORD.sub("", _NUMBER_COMMA.sub("", word))
    return _joined(unicodedata.normalize("NFKC", word).translate(_WITHOUT_PUNCTUATION))


def _joined(text: str) -> str:
    return " ".join(text.split())


class _ByCategory(dict[int, str | None]):
    """A str.translate table by Unicode category, filled as characters turn up."""

    def __init__(self, spaces: str, deleted: frozenset[str] = frozenset()) -> None:
        self.spaces = spaces
        self.deleted = deleted

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        if category in self.deleted:
            self[code] = None
        else:
            self[code] = " " if category[0] in self.spaces else character
        return self[code]


_WITHOUT_PUNCTUATION = _ByCategory(spaces="PSZ", deleted=frozenset({"Cf"}))
_WITHOUT_MARKS_AND_SYMBOLS = _ByCategory(spaces="MSP")
_WITHOUT_POINTS = _ByCategory(spaces="", deleted=frozenset({"Mn", "Cf"}))

_BIDI_AND_ZERO_WIDTH = (
    "\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)
_VOWEL_POINTS = "".join(map(chr, [*range(0x05B0, 0x05BD), 0x05C1, 0x05C2, 0x05C4, 0x05C5, 0x05C7]))
_IVRIT_DELETED = dict.fromkeys(map(ord, _BIDI_AND_ZERO_WIDTH + _VOWEL_POINTS + "\"'"))
_BRACKET = re.compile(r"[<\[(]")
_BRACKETS = re.compile(r"[<\[][^>\]]*[>\]]")
_ROUND_BRACKETS = re.compile(r"\(([^)]+?)\)")

_SINGLE, _DOUBLE, _HYPHENS = "'`´‘’‚‛′׳", '"“”„‟″״', "-־‐‑‒–—―−"
_UNIFIED = {
    **dict.fromkeys(map(ord, _SINGLE), "'"),
    **dict.fromkeys(map(ord, _DOUBLE), '"'),
    **dict.fromkeys(map(ord, _HYPHENS), " "),
}
_INSIDE_WORD = re.compile(r"(?<=\w)['\"]+(?=\w)|(?<=\w)'+(?!\w)")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_NUMBER_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")

RULES: dict[Profile, Callable[[str], str]] = {
    "plain": _plain,
    "ivrit-leaderboard": _ivrit_leaderboard,
    "hebrew-fair": _hebrew_fair,
}
