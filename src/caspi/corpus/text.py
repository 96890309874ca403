"""Text rules for training, by name and version. A changed rule gets a new version: old rounds stay what they were."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_TIMESTAMP = re.compile(r"<\|\d+(?:\.\d+)?\|>")
_REPEATED = re.compile(r"([.,!?;:])\1+")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # controls that are not whitespace
    "\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"  # soft hyphen, bidi marks, no-width spaces
    "\ud800-\udfff]"  # halves of surrogate pairs: JSON can hold them, UTF-8 can't
)
_PRESENTATION_FORM = re.compile("[\ufb1d-\ufb4f]+")
_HEBREW_MARK = re.compile(
    "["
    + "".join(chr(c) for c in range(0x0590, 0x0600) if unicodedata.category(chr(c)) == "Mn")
    + "\ufb1e\u034f]"  # varika, and the joiner that biblical texts put between marks
)
_HEBREW_PUNCTUATION = str.maketrans(
    {
        "\u05be": "-",  # maqaf joins two words
        "\u2010": "-",
        "\u2011": "-",
        "\u05c0": " ",  # paseq parts two words
        "\u05c3": ".",  # sof pasuq ends a verse
        "\u05c6": " ",  # nun hafukha frames a passage
        **dict.fromkeys("\u05f3\u2018\u2019\u201a\u201b\u00b4`", "'"),  # geresh and what people type for it
        **dict.fromkeys("\u05f4\u201c\u201d\u201e\u201f", '"'),  # gershayim, likewise
    }
)
_TWO_GERESHES = re.compile(r"(?<=[\u05d0-\u05ea])''(?=[\u05d0-\u05ea])")


def normalise(name: str, text: str) -> str:
    """`text` under the named rules. Idempotent; "" when nothing is left."""
    return _RULES[name](text)


def _plain_1(text: str) -> str:
    """Same letters in the same form (NFC), no invisible characters, single spaces."""
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).split())


def _hebrew_1(text: str) -> str:
    """What the first Hebrew rounds meant to do: drop timestamps and niqqud, collapse `???` to `?`.

    As written they glued words: their range U+0591-U+05C7 holds maqaf and paseq too, a dropped timestamp left
    nothing between its neighbours, and a doubled backslash kept repeated punctuation as it was. Here marks go and
    punctuation stays, as it was found; hebrew-2 also brings its different spellings together.
    """
    text = _TIMESTAMP.sub(" ", _INVISIBLE.sub("", text))
    return " ".join(_REPEATED.sub(r"\1", _HEBREW_MARK.sub("", text)).split())


def _hebrew_2(text: str) -> str:
    """hebrew-1, and one spelling for one thing: letters from presentation forms, maqaf as `-`, geresh as `'`,
    gershayim as `"` (ASCII: that is how the base models and the public scorers write them)."""
    text = _TIMESTAMP.sub(" ", _INVISIBLE.sub("", text))
    text = _PRESENTATION_FORM.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = _HEBREW_MARK.sub("", unicodedata.normalize("NFC", text)).translate(_HEBREW_PUNCTUATION)
    text = _REPEATED.sub(r"\1", _TWO_GERESHES.sub('"', text))
    return " ".join(unicodedata.normalize("NFC", text).split())


_RULES: dict[str, Callable[[str], str]] = {"plain-1": _plain_1, "hebrew-1": _hebrew_1, "hebrew-2": _hebrew_2}
