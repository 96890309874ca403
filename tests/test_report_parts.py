"""The small parts of the report: formats, charts, diffs, clips, curves."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as some

from caspi.errors import UserError
from caspi.report import charts, formats
from caspi.report.curves import read_metrics
from caspi.report.diffs import Piece, direction, errors, visible, word_diff
from caspi.report.examples import choose, read_predictions
from caspi.report.sound import Clips


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.count(186812), "186,812"),
        (formats.percent(0.2345), "23.4%"),
        (formats.signed(-0.0412, " points"), "−4.1\u00a0points"),
        (formats.signed(0.0412), "+4.1%"),
        (formats.signed(-0.0002), "0.0%"),
        (formats.duration(0.41), "0.4\u202fs"),
        (formats.duration(151), "2\u202fmin 31\u202fs"),
        (formats.duration(59.7), "1\u202fmin 00\u202fs"),
        (formats.duration(3599.9), "1\u202fh 00\u202fmin"),
        (formats.duration(14_700), "4\u202fh 05\u202fmin"),
        (formats.hours(0.62), "0.62\u202fh"),
        (formats.hours(1320.4), "1,320\u202fh"),
        (formats.rate(2e-4), "2.0e−4"),
        (formats.rate(9.99e-5), "1.0e−4"),
        (formats.rate(0), "0"),
        (formats.plain(0.031234), "0.0312"),
        (formats.plain(1234.5), "1,234"),
        (formats.plain(-12.34), "−12.3"),
        (formats.size(13_400), "13\u202fkB"),
        (formats.size(1_440_000), "1.4\u202fMB"),
        (formats.size(36.9e9), "36.9\u202fGB"),
        (formats.moment("2026-11-21T09:28:11+02:00"), "21 Nov 2026, 07:28 UTC"),
        (formats.moment("yesterday"), "yesterday"),
        (formats.figure(812_000_000, "peak_memory"), "812.0\u202fMB"),
        (formats.figure({"p50": 0.2104, "p90": 1.5}, "latency"), "p50 0.210\u202fs, p90 1.50\u202fs"),
        (formats.figure(None), "unknown"),
        (formats.figure(float("nan"), "seconds"), "nan"),
        (formats.typeset("r-2 5% -> 4%, -1.0 (-1.5 to -0.5)"), "r-2 5% → 4%, −1.0 (−1.5 to −0.5)"),
        (formats.plural(1, "utterance"), "1 utterance"),
        (formats.plural(2, "hypothesis", "hypotheses"), "2 hypotheses"),
    ],
)
def test_numbers_are_written_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected


sentences = some.lists(some.sampled_from(["אב", "גד", "הו", "zip", "12", "x"]), max_size=8).map(" ".join)


@given(sentences, sentences)
def test_a_diff_holds_both_texts_and_the_fewest_errors(reference: str, hypothesis: str) -> None:
    pieces = word_diff(reference, hypothesis)
    assert " ".join(p.reference for p in pieces if p.reference) == reference
    assert " ".join(p.hypothesis for p in pieces if p.hypothesis) == hypothesis
    if reference:
        measured = jiwer.process_words(reference, hypothesis)
        assert errors(pieces) == measured.substitutions + measured.deletions + measured.insertions


def test_a_diff_names_each_kind_of_error() -> None:
    assert word_diff("שלום ילד טוב היום", "שלום ילדה היום היום מחר") == [
        Piece("equal", "שלום", "שלום"),
        Piece("wrong", "ילד", "ילדה"),
        Piece("wrong", "טוב", "היום"),
        Piece("equal", "היום", "היום"),
        Piece("extra", "", "מחר"),
    ]
    assert word_diff("a b", "a") == [Piece("equal", "a", "a"), Piece("missing", "b", "")]
    assert word_diff("", "") == []


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["שלום"], "rtl"),
        (["hello"], "ltr"),
        (["WhatsApp שלום לכם ולכן"], "rtl"),  # dir="auto" would say ltr
        (["123 %"], "ltr"),
        ([""], "ltr"),
        (["", "مرحبا"], "rtl"),
    ],
)
def test_direction_goes_by_most_letters(texts: list[str], expected: str) -> None:
    assert direction(*texts) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("שלום", "שלום"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\u2069b\u200f", "a⟨U+2069⟩b⟨U+200F⟩"),
        ("\x00\x1b[31m", "⟨U+0000⟩⟨U+001B⟩[31m"),
        ("\ud800", "⟨U+D800⟩"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("line\ntab\t", "line\ntab\t"),
        ("x" * 1600, "x" * 1500 + " … (100 more characters)"),
    ],
)
def test_invisible_characters_are_shown(text: str, expected: str) -> None:
    assert visible(text) == expected


CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(some.text(alphabet=some.characters(codec=None)))
def test_what_is_shown_can_always_be_written_and_never_reorders(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert not {unicodedata.bidirectional(c) for c in shown} & CONTROLS


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.34, [0, 0.1, 0.2, 0.3, 0.4]),
        (0, 600, [0, 200, 400, 600]),
        (0, 0.001, [0, 0.00025, 0.0005, 0.00075, 0.001]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == expected


def test_a_line_has_its_points_where_the_numbers_say() -> None:
    line = charts.Series("WER", [(0, 1.0), (50, 0.5), (100, 0.0)], "tone-1", marked=True)
    svg = charts.line_chart("Errors", [line], "{:.1f}".format, boundaries=[charts.Boundary(50, "A")])
    assert 'd="M0.0 0.0 L500.0 90.0 L1000.0 180.0"' in svg
    assert re.findall(r'cx="([\d.]+%)" cy="([\d.]+)"', svg) == [
        ("0.00%", "0.0"),
        ("50.00%", "90.0"),
        ("100.00%", "180.0"),
    ]
    assert 'class="boundary" x1="50.00%"' in svg
    assert 'aria-label="Errors: WER from 1.0 at step 0 to 0.0 at step 100"' in svg
    assert ">WER<" in svg and ">0.0<" in svg  # the label at its end


def test_charts_without_points_are_nothing_and_with_one_are_something() -> None:
    assert charts.line_chart("Empty", [charts.Series("a", [], "tone-1")], str) == ""
    assert charts.interval_chart("Empty", [], str) == ""
    assert "<circle" in charts.line_chart("One", [charts.Series("a", [(3, 0.0)], "tone-1")], str)


def test_labels_of_charts_are_escaped() -> None:
    evil = '"><script>alert(1)</script>'
    line = charts.line_chart(evil, [charts.Series(evil, [(0, 1), (1, 2)], "tone-1", label=evil)], str)
    row = charts.Row(evil, evil, [charts.Interval(0.5, 0.4, 0.6, "candidate", evil)], [(0.5, evil)])
    for svg in (line, charts.interval_chart(evil, [row], str), charts.bar(evil, [charts.Part(evil, 1, "tone-1")])):
        assert "<script" not in svg and '"">' not in svg


def test_intervals_lie_on_one_scale_from_zero() -> None:
    rows = [
        charts.Row("a", "", [charts.Interval(0.2, 0.1, 0.3, "candidate", "20%")], [(0.4, "limit")]),
        charts.Row("b", "", [charts.Interval(0.35, 0.3, 0.38, "baseline", "35%", hollow=True)]),
    ]
    svg = charts.interval_chart("WER", rows, formats.percent)
    assert re.findall(r'class="range" x1="([\d.]+)%" x2="([\d.]+)%"', svg) == [("25.00", "75.00"), ("75.00", "95.00")]
    assert re.findall(r'<circle cx="([\d.]+)%"', svg) == ["50.00", "87.50"]
    assert re.findall(r'class="limit" x1="([\d.]+)%"', svg) == ["100.00"]


def test_a_bar_is_as_long_as_its_parts() -> None:
    svg = charts.bar("Ledger", [charts.Part("kept", 90, "a"), charts.Part("none", 0, "b"), charts.Part("bad", 10, "c")])
    assert re.findall(r'x="([\d.]+)%" y="0" width="([\d.]+)%"', svg) == [("0.000", "90.000"), ("90.000", "10.000")]
    assert 'aria-label="Ledger: kept 90, bad 10"' in svg


@given(some.lists(some.floats(0, 1, allow_subnormal=False), min_size=1, max_size=60), some.integers(1, 20))
def test_thinning_keeps_the_mean_and_smoothing_the_steps(values: list[float], most: int) -> None:
    points = list(enumerate(values))
    thinned = charts.thin(points, most)
    assert len(thinned) <= max(most, 1) and thinned[0][0] >= 0
    assert min(values) - 1e-9 <= min(y for _, y in thinned) <= max(y for _, y in thinned) <= max(values) + 1e-9
    assert [x for x, _ in charts.smooth(points, 3)] == [x for x, _ in points]


def test_smoothing_is_a_moving_mean() -> None:
    assert charts.smooth([(0, 0), (1, 3), (2, 6), (3, 0)], 1) == [(0, 0), (1, 3), (2, 3), (3, 0)]


@given(some.lists(some.floats(0, 180, allow_subnormal=False), min_size=1, max_size=6))
def test_labels_never_touch_and_keep_their_order(places: list[float]) -> None:
    moved = charts.spread(places, gap=26, low=4, high=164)
    ordered = [moved[i] for i in sorted(range(len(places)), key=lambda i: places[i])]
    assert all(b - a >= 26 - 1e-6 for a, b in pairwise(ordered))


def test_metrics_are_read_whatever_happened_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines: list[Any] = [
        {"kind": "train", "step": 1, "loss": 5.0},
        {"kind": "train", "step": 2, "loss": 4.0},
        {"kind": "dev", "step": 2, "wer": 0.9},
        {"kind": "train", "step": 2, "loss": 3.0},  # resumed from step 1: the later line counts
        {"kind": "other", "step": 2},
        {"step": 3},
        [1],
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "train", "step": 3, "lo')
    metrics = read_metrics(path)
    assert [line["loss"] for line in metrics.train] == [5.0, 3.0]
    assert [line["wer"] for line in metrics.dev] == [0.9]
    assert metrics.last_step == 2
    assert read_metrics(tmp_path / "none.jsonl").last_step is None


def test_clips_stop_at_the_budget() -> None:
    sizes = {"a": 600, "b": 500, "c": 300}

    def encoded(audio: str) -> tuple[bytes, str]:
        if audio not in sizes:
            raise UserError("no such file")
        return b"x" * sizes[audio], ".mp3"

    clips = Clips(encoded, budget=1000)
    assert clips.clip("a").uri == "data:audio/mpeg;base64," + base64.b64encode(b"x" * 600).decode()
    assert "keep this page small" in clips.clip("b").absent
    assert clips.clip("c").uri
    assert clips.clip("missing").absent == "no such file"
    assert (clips.asked, clips.embedded, clips.bytes) == (4, 2, 900)
    assert Clips(lambda _: (b"", ".midi")).clip("x").absent == "no browser plays .midi"


def _lines(**texts: str) -> list[dict[str, Any]]:
    common = {"set": "s", "domain": "d", "reference": "a b c d", "seconds": 1.0, "audio": "s/x"}
    return [{"id": name, "hypothesis": text, **common} for name, text in texts.items()]


def test_examples_are_what_changed_most_the_worst_and_the_typical_none_twice() -> None:
    before = _lines(gained="", lost="a b c d", same="x y z w", fine="a b c d", little="a b c")
    after = _lines(gained="a b c d", lost="x y", same="x y z w", fine="a b c d", little="a b c d")
    read = [read_predictions(lines, str) for lines in (after, before)]
    groups = choose(read[0], read[1], ("r2", "r1"), Clips(lambda _: (b"", ".wav")))
    assert {group.title: [example.id for example in group.examples] for group in groups} == {
        "Most gained": ["gained", "little"],
        "Most lost": ["lost"],
        "Worst": ["same"],
        "Typical": ["fine"],
    }
    assert [(heard.who, heard.errors) for heard in groups[0].examples[0].heard] == [("r1", 4), ("r2", 0)]


def test_a_baseline_with_another_reference_is_not_compared() -> None:
    before = _lines(one="a b c d")
    before[0]["reference"] = "something else"
    groups = choose(
        *(read_predictions(x, str) for x in (_lines(one="a"), before)), ("r2", "r1"), Clips(lambda _: (b"", ".wav"))
    )
    assert [group.title for group in groups] == ["Worst"]
    assert [heard.who for heard in groups[0].examples[0].heard] == ["r2"]
