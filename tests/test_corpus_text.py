"""Text rules: what each named version does to what people really write."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspi.corpus.text import _RULES, normalise, why_empty

# (text, plain-1, hebrew-1, hebrew-2)
GOLDEN = [
    ("  שלום   עולם\n", "שלום עולם", "שלום עולם", "שלום עולם"),
    ("<|0.00|> שלום<|1.24|><|1.24|> עולם<|2|>", "<|0.00|> שלום<|1.24|><|1.24|> עולם<|2|>", "שלום עולם", "שלום עולם"),
    ("שלום<|1.24|>עולם", "שלום<|1.24|>עולם", "שלום עולם", "שלום עולם"),
    ("<|he|> שלום", "<|he|> שלום", "<|he|> שלום", "<|he|> שלום"),  # no timestamp: for a person to look at
    ("מה??? כן!!!", "מה??? כן!!!", "מה? כן!", "מה? כן!"),  # the dead regex of the seed left this as it was
    ("רגע... מה?!", "רגע... מה?!", "רגע. מה?!", "רגע. מה?!"),
    ("שָׁלוֹם", "שָׁלוֹם", "שלום", "שלום"),
    ("בית־ספר", "בית־ספר", "בית־ספר", "בית-ספר"),  # a wide range glued it: ביתספר
    ("אמר׀לו", "אמר׀לו", "אמר׀לו", "אמר לו"),  # paseq
    ("סוף׃", "סוף׃", "סוף׃", "סוף."),
    ("סוף׃.", "סוף׃.", "סוף׃.", "סוף."),
    ("א׆ב", "א׆ב", "א׆ב", "א ב"),  # nun hafukha
    ("\ufb2aלום \ufb4fהים", "ש\u05c1לום \ufb4fהים", "\ufb2aלום \ufb4fהים", "שלום אלהים"),
    ("צה״ל צה\"ל צה”ל צה''ל", "צה״ל צה\"ל צה”ל צה''ל", "צה״ל צה\"ל צה”ל צה''ל", 'צה"ל צה"ל צה"ל צה"ל'),
    ("ג׳ירפה ג'ירפה ג’ירפה", "ג׳ירפה ג'ירפה ג’ירפה", "ג׳ירפה ג'ירפה ג’ירפה", "ג'ירפה ג'ירפה ג'ירפה"),
    ("\u200fשלום\u202c \u2067עולם\u2069\ufeff", "שלום עולם", "שלום עולם", "שלום עולם"),
    ("cafe\u0301 na\u00efve", "café naïve", "cafe\u0301 naïve", "café naïve"),  # only Hebrew loses its marks
    ("قَالَ", "قَالَ", "قَالَ", "قَالَ"),
    ("a\x00b\x85c", "ab c", "ab c", "ab c"),
    ("half \ud83d of a pair", "half of a pair", "half of a pair", "half of a pair"),
    ("می\u200cخواهم", "می\u200cخواهم", "می\u200cخواهم", "می\u200cخواهم"),  # a joiner that spells, kept
    ("<|1.0|>\u200f \u05b0", "<|1.0|> \u05b0", "", ""),
]


@pytest.mark.parametrize(("text", "plain_1", "hebrew_1", "hebrew_2"), GOLDEN)
def test_golden(text: str, plain_1: str, hebrew_1: str, hebrew_2: str) -> None:
    expected = {"plain-1": unicodedata.normalize("NFC", plain_1), "hebrew-1": hebrew_1, "hebrew-2": hebrew_2}
    assert {name: normalise(name, text) for name in expected} == expected


ENGLISH = [
    ("an army is coming, the boy said.", "AN ARMY IS COMING THE BOY SAID"),
    ("Don’t `stop` — it’s the “dogs'” café…", "DON'T 'STOP' IT'S THE DOGS' CAFE"),
    ("''Rock 'n' roll,'' she said ' loudly", "ROCK 'N' ROLL SHE SAID LOUDLY"),
    ("Well-known naïve Ægir Straße Øre", "WELL KNOWN NAIVE AEGIR STRASSE ORE"),
    ("he\u0301 ﬁve\u200bs", "HE FIVES"),
    ("It was 1984", ""),  # nineteen eighty-four, or one thousand nine hundred ...
    ("half ½ of it", ""),
    ("a 5% share", ""),
    ("salt & pepper", ""),
    ("it costs £ a lot", ""),
    ("the word мир", ""),
    ("' — \"", ""),
]


@pytest.mark.parametrize(("text", "expected"), ENGLISH)
def test_english_upper_1(text: str, expected: str) -> None:
    assert normalise("english-upper-1", text) == expected


@given(st.text(st.one_of(st.characters(), st.sampled_from("aBßé'’` ,.-1ŉı")), max_size=30))
def test_english_upper_1_is_spelt_by_its_vocabulary(text: str) -> None:
    assert set(normalise("english-upper-1", text)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' ")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("english-upper-1", "It was 1984", "text not in A-Z"),
        ("english-upper-1", " -- ", "empty text"),
        ("plain-1", "", "empty text"),
        (None, "", "empty text"),
    ],
)
def test_why_nothing_is_left(name: str | None, text: str, reason: str) -> None:
    assert why_empty(name, text) == reason


def as_the_seed_wrote_it(text: str) -> str:
    text = re.sub(r"<\|[\d.]+\|>", "", text)
    text = re.sub(r"[\u0591-\u05C7]", "", text)
    text = re.sub(r"([.,!?;:])\\1+", r"\\1", text)
    return " ".join(text.split()).strip()


@pytest.mark.parametrize(
    ("text", "seed", "meant"),
    [
        ("מה??? כן!!!", "מה??? כן!!!", "מה? כן!"),
        ("בית־ספר", "ביתספר", "בית־ספר"),
        ("שלום<|1.24|>עולם", "שלוםעולם", "שלום עולם"),
        ("שָׁלוֹם", "שלום", "שלום"),
    ],
)
def test_hebrew_1_is_what_the_seed_meant(text: str, seed: str, meant: str) -> None:
    assert as_the_seed_wrote_it(text) == seed
    assert normalise("hebrew-1", text) == meant


ALPHABET = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from(
            "אבגשת\u05bc\u05c1\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\ufb2a\ufb4f\u200f\u0301\u034f '\".,!?<|1.0|>- "
        ),
    ),
    max_size=30,
)


@pytest.mark.parametrize("name", sorted(_RULES))
@given(text=ALPHABET)
def test_twice_is_once_and_the_result_can_be_written(name: str, text: str) -> None:
    once = normalise(name, text)
    assert normalise(name, once) == once
    assert once == " ".join(once.split())
    once.encode("utf-8")
