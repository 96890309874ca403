"""Profiles: what counts as the same word."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from caspi.scoring.profiles import apply
from caspi.spec.data import Profile

TABLE = [
    # text, plain, ivrit-leaderboard, hebrew-fair
    ("Hello,  World!", "hello world", "hello world", "hello world"),
    ("don't stop", "dont stop", "dont stop", "dont stop"),
    ("rock-n-roll", "rock n roll", "rock n roll", "rock n roll"),
    ('צה"ל', "צה ל", "צהל", "צהל"),  # the leaderboard deletes an ASCII quote ...
    ("צה״ל", "צה ל", "צה ל", "צהל"),  # ... and splits at the Hebrew gershayim
    ("צה”ל", "צה ל", "צה ל", "צהל"),
    ("ג'ירפה", "גירפה", "גירפה", "גירפה"),
    ("ג׳ירפה", "ג ירפה", "ג ירפה", "גירפה"),
    ("רח' הרצל", "רח הרצל", "רח הרצל", "רח הרצל"),
    ('אמר "כן" והלך', "אמר כן והלך", "אמר כן והלך", "אמר כן והלך"),
    ("בית־ספר", "בית ספר", "בית ספר", "בית ספר"),  # stripping U+0591-05C7 would make one word of it
    ("בֵּית־סֵפֶר", "בֵּית סֵפֶר", "בית ספר", "בית ספר"),
    ("וַיֹּ֥אמֶר", "וַיֹּ֥אמֶר", "וי אמר", "ויאמר"),  # cantillation is no vowel point: Whisper makes a space of it
    ("\ufb2aלום", "שׁלום", "ש לום", "שלום"),  # a presentation form hides its point until NFKC
    ("\u200fשלום\u200e", "שלום", "שלום", "שלום"),
    ("שלום [רעש] (צוחק) לכם", "שלום רעש צוחק לכם", "שלום לכם", "שלום רעש צוחק לכם"),
    ("מה??? כן!!!", "מה כן", "מה כן", "מה כן"),
    ("3,000 איש", "3 000 איש", "3 000 איש", "3000 איש"),
    ("café", "café", "café", "cafe"),
    ("हिन्दी", "हिन्दी", "ह न द", "हिनदी"),
    ("", "", "", ""),
    (" . ", "", "", ""),
]


@pytest.mark.parametrize(("text", "plain", "ivrit", "fair"), TABLE)
def test_a_text_in_each_profile(text: str, plain: str, ivrit: str, fair: str) -> None:
    assert apply("plain", text) == plain
    assert apply("ivrit-leaderboard", text) == ivrit
    assert apply("hebrew-fair", text) == fair


MARKS = "\u061c\u200b\u200d\u200e\u200f\u202b\u202c\u2067\ufeff"
HEBREW = "אבגשתםץ" + "ִַָּׁׂ" + "ֽֿ֑֥" + "־׀׃״׳"
MIXED = st.text(st.sampled_from(HEBREW + MARKS + "\"' ()[]<>-–.,?!aBéİß½ﬁשׁ5٣\n\t\u00a0Σ"), max_size=40)


def leaderboard(text: str) -> str:
    """The published steps, one after the other, around the normaliser that transformers carries."""
    text = "".join(c for c in text if c not in "\u061c\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
                   "\u2066\u2067\u2068\u2069\ufeff")  # fmt: skip
    for point in "ְֱֲֳִֵֶַָׇֹֺֻּׁׂׅׄ":
        text = text.replace(point, "")
    text = text.replace('"', "").replace("'", "")
    return BasicTextNormalizer()(text)


@given(MIXED | st.text(max_size=30))
@example('א("ב)ג')
@example("(\u200f)א")
@example("ΟΔΟΣ(x)Α")
def test_the_leaderboard_profile_is_the_leaderboards(text: str) -> None:
    assert apply("ivrit-leaderboard", text).split(" ") == leaderboard(text).strip().split(" ")


@given(MIXED | st.text(max_size=30), st.sampled_from(["plain", "hebrew-fair"]))
@example("İ\u0591", "plain")  # lower case takes the letter apart, and its marks out of order
def test_a_profile_applied_twice_changes_nothing(text: str, profile: Profile) -> None:
    once = apply(profile, text)
    assert apply(profile, once) == once
    assert once == " ".join(once.split())
