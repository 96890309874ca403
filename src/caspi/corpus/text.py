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


_APOSTROPHES = str.maketrans(dict.fromkeys("\u02b9\u02bb\u02bc\u02bd\u2018\u2019\u201b\u2032\u00b4`", "'"))
_WHOLE_LETTERS = str.maketrans({"Æ": "AE", "Œ": "OE", "Ø": "O", "Ł": "L", "Đ": "D", "Ð": "D", "Þ": "TH"})
_SAID = "%&@#"  # and signs of currencies and sums: heard as words, written as none


def normalise(name: str, text: str) -> str:
    """`text` under the named rules. Idempotent; "" when nothing is left."""
    return _RULES[name](text)


def why_empty(name: str | None, text: str) -> str:
    """The reason in the ledger for a text of which the rules leave nothing."""
    lost = name == "english-upper-1" and any(map(_is_said, unicodedata.normalize("NFKD", text)))
    return "text not in A-Z" if lost else "empty text"


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


def _english_upper_1(text: str) -> str:
    """English in the 28 characters that wav2vec2-large-960h spells: A-Z, the apostrophe and the space.

    Accents go (CAFE), every apostrophe is `'`, other punctuation is a space. Of a text with digits, letters of other
    scripts or signs such as %, nothing is left: they are said as words, and which ones the text does not tell.
    """
    text = _marks_off(_INVISIBLE.sub("", text).translate(_APOSTROPHES).upper()).upper().translate(_WHOLE_LETTERS)
    text = re.sub("'{2,}", " ", text.translate(_APOSTROPHES))  # how some type a quotation mark
    if any(_is_said(char) and not "A" <= char <= "Z" for char in text):
        return ""
    words = re.sub("[^A-Z']", " ", text).split()
    return " ".join(word for word in words if word.strip("'"))


def _marks_off(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFKD", text) if unicodedata.category(char) != "Mn")


def _is_said(char: str) -> bool:
    """Whether a character stands for something that is heard."""
    return unicodedata.category(char)[0] in "LN" or unicodedata.category(char) in ("Sc", "Sm") or char in _SAID


_RULES: dict[str, Callable[[str], str]] = {
    "plain-1": _plain_1,
    "hebrew-1": _hebrew_1,
    "hebrew-2": _hebrew_2,
    "english-upper-1": _english_upper_1,
}
