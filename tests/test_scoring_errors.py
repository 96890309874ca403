"""Error counts against jiwer, scores of groups, and loops."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caspi.errors import UserError
from caspi.scoring.error_counts import count_errors
from caspi.scoring.loops import compression, loops
from caspi.scoring.scores import score_predictions

TEXT = st.lists(st.sampled_from(["א", "אב", "בא", "ג", "a", "ab", "b"]), max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6)


@given(PAIRS)
@example([("a b", "")])
@example([("", "a b")])
@example([("", "")])
def test_errors_are_jiwers(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    counts = count_errors(references, hypotheses)
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    assert counts.wer == pytest.approx(words.wer)
    assert counts.cer == pytest.approx(characters.cer)
    for errors, output in ((counts.words, words), (counts.characters, characters)):
        assert errors.total.sum() == output.substitutions + output.deletions + output.insertions
        assert errors.deletions.sum() - errors.insertions.sum() == output.deletions - output.insertions
        assert errors.length.sum() == output.hits + output.substitutions + output.deletions


@given(PAIRS)
def test_each_utterance_stands_for_itself(pairs: list[tuple[str, str]]) -> None:
    together = count_errors([r for r, _ in pairs], [h for _, h in pairs])
    alone = [count_errors([r], [h]) for r, h in pairs]
    assert together.words.total.tolist() == [int(c.words.total[0]) for c in alone]
    chosen = np.arange(len(pairs)) % 2 == 0
    assert together.select(chosen).words.total.sum() == sum(c.words.total[0] for c in alone[::2])


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("a b c", "a b c", (0, 0, 0, 3)),
        ("a b c", "", (0, 3, 0, 3)),
        ("", "a b", (0, 0, 2, 0)),
        ("a b c", "a x c d", (1, 0, 1, 3)),
        ("  a   b ", "a b", (0, 0, 0, 2)),
    ],
)
def test_a_pair_in_words(reference: str, hypothesis: str, expected: tuple[int, int, int, int]) -> None:
    words = count_errors([reference], [hypothesis]).words
    found = (words.substitutions, words.deletions, words.insertions, words.length)
    assert tuple(int(column[0]) for column in found) == expected


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        count_errors(["a", "b"], ["a"])


def line(set_: str, domain: str, reference: str, hypothesis: str) -> dict[str, str]:
    return {"set": set_, "domain": domain, "reference": reference, "hypothesis": hypothesis}


PREDICTIONS = [
    line("one", "phone", "א ב ג ד", "א ב ג ד"),
    line("one", "studio", "א ב", ""),
    line("two", "phone", 'צה"ל א', "צה״ל א"),
    line("two", "phone", "ד ד ד ד", "ד ד ד ד"),
]


def test_scores_by_group_and_profile() -> None:
    scores = {(s.group, s.profile): s for s in score_predictions(PREDICTIONS, ["hebrew-fair", "ivrit-leaderboard"], 1)}
    assert [group for group, profile in scores if profile == "hebrew-fair"] == [
        "set:one", "set:two", "domain:phone", "domain:studio", "all", "average",
    ]  # fmt: skip
    fair = {group: score for (group, profile), score in scores.items() if profile == "hebrew-fair"}
    assert fair["set:one"].wer.value == 2 / 6
    assert fair["set:two"].wer.value == 0
    assert fair["domain:studio"].wer.value == 1.0
    assert fair["all"].wer.value == 2 / 12
    assert fair["average"].wer.value == (2 / 6 + 0) / 2
    assert (fair["all"].words, fair["all"].deletions, fair["all"].utterances) == (12, 2, 4)
    strict = scores["set:two", "ivrit-leaderboard"]
    assert strict.wer.value == 2 / 6  # צהל became two words
    assert strict.cer.value == 1 / 12
    for score in scores.values():
        assert 0 <= score.wer.low <= score.wer.value <= score.wer.high


def test_scores_are_the_same_every_time_and_follow_the_seed() -> None:
    many = [
        {**prediction, "hypothesis": prediction["reference"][: 3 + i % 5]}
        for i in range(40)
        for prediction in PREDICTIONS
    ]
    once, again, other = (score_predictions(many, ["plain"], seed) for seed in (1, 1, 2))
    assert once == again
    assert [s.wer.value for s in once] == [s.wer.value for s in other]
    assert [s.wer.low for s in once] != [s.wer.low for s in other]


def test_no_predictions_are_an_error() -> None:
    with pytest.raises(UserError, match="no predictions"):
        score_predictions([], ["plain"], 1)


GENESIS = (
    "בראשית ברא אלהים את השמים ואת הארץ והארץ היתה תהו ובהו וחשך על פני תהום ורוח אלהים מרחפת על פני המים "
    "ויאמר אלהים יהי אור ויהי אור וירא אלהים את האור כי טוב ויבדל אלהים בין האור ובין החשך ויקרא אלהים "
    "לאור יום ולחשך קרא לילה ויהי ערב ויהי בקר יום אחד ויאמר אלהים יהי רקיע בתוך המים ויהי מבדיל בין מים "
    "למים ויעש אלהים את הרקיע ויבדל בין המים אשר מתחת לרקיע ובין המים אשר מעל לרקיע ויהי כן ויקרא אלהים "
    "לרקיע שמים ויהי ערב ויהי בקר יום שני"
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", False),
        ("שלום לכם", False),
        ("לא לא לא לא", False),
        ("הא הא הא הא הא הא", False),
        (GENESIS, False),
        ("language Hebrew<asr_text>שלום לכם", False),
        ("תודה רבה לכם " * 6, True),
        ("לא " * 12, True),
        ("בוקר טוב " * 12, True),
        ("ואז " + "הוא אמר לי ש" * 9, True),
        ("!" * 40, True),
        ("אהה" + "הא" * 30, True),
        (" ".join(f"שורה {i} היא בדיוק אותה שורה כמו קודם" for i in range(60)), True),  # never the same, nothing new
    ],
)
def test_loops(raw: str, expected: bool) -> None:
    assert loops(raw) == expected


def test_compression_is_the_same_in_every_script() -> None:
    latin = GENESIS.translate({ord(letter): chr(97 + i) for i, letter in enumerate(sorted(set(GENESIS) - {" "}))})
    assert compression(latin) == pytest.approx(compression(GENESIS), rel=0.05)
