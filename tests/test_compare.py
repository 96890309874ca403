"""Compare: only like with like, and no verdict without an interval that shows it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from caspi.errors import UserError
from caspi.files import atomic, file_digest, json_line
from caspi.records.record import Circumstances, Record, write_record
from caspi.records.results import Estimate
from caspi.records.round_dir import RoundDir, create
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.stages.compare import STAGE, compare, paired_lines, sentence, verdict
from caspi.stages.stage import perform

WORDS = ["אבא", "אמא", "ילד", "כלב", "מים", "ספר", "טוב", "שלום"]


def predictions(
    wrong: float, sets: Sequence[str] = ("news", "calls"), size: int = 150, seed: int = 0
) -> list[dict[str, Any]]:
    """The same references for any `wrong`: the share of words that was heard as another one."""
    random, noise = np.random.default_rng(seed), np.random.default_rng(1)
    lines = []
    for name in sets:
        for number in range(size):
            words = random.choice(WORDS, 6).tolist()
            heard = [w if noise.random() > wrong else "xx" for w in words]
            lines.append(
                {
                    "id": f"{name}/{number}", "set": name, "domain": "phone" if number % 2 else "studio",
                    "reference": " ".join(words), "hypothesis": " ".join(heard), "raw": "", "seconds": 1.0, "audio": "",
                }
            )  # fmt: skip
    return lines


def test_differences_are_those_of_the_rates() -> None:
    before, after = predictions(0.3), predictions(0.2)
    deltas = {(delta.group, delta.profile): delta for delta in compare(before, after, ["plain", "hebrew-fair"], 1)}
    assert len(deltas) == 2 * len({"set:calls", "set:news", "domain:phone", "domain:studio", "all", "average"})
    for group, chosen in (
        ("all", lambda line: True),
        ("set:news", lambda line: line["set"] == "news"),
        ("domain:phone", lambda line: line["domain"] == "phone"),
    ):
        delta = deltas[group, "plain"]
        rates = [
            jiwer.wer([p["reference"] for p in lines if chosen(p)], [p["hypothesis"] for p in lines if chosen(p)])
            for lines in (before, after)
        ]
        assert (delta.baseline_wer, delta.candidate_wer) == pytest.approx(rates)
        assert delta.difference.value == pytest.approx(rates[1] - rates[0])
        assert delta.relative == pytest.approx(rates[1] / rates[0] - 1)
        assert delta.difference.low < delta.difference.value < delta.difference.high
    assert deltas["average", "plain"].utterances == 300


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.02, -0.01, "better"),
        (-0.02, 0.0, "no difference shown"),
        (-0.01, 0.01, "no difference shown"),
        (0.0, 0.01, "no difference shown"),
        (0.001, 0.01, "worse"),
    ],
)
def test_the_verdict_is_the_intervals(low: float, high: float, expected: str) -> None:
    assert verdict(Estimate(value=(low + high) / 2, low=low, high=high)) == expected


def test_the_sentence_has_absolute_and_relative_figures() -> None:
    deltas = compare(predictions(0.3), predictions(0.2), ["plain"], 1)
    text = sentence(deltas[-1], "r1", "r2", sets=["calls", "news"], alone={"baseline": [], "candidate": ["new"]})
    assert text.startswith("r2 is better than r1: WER ")
    assert "points (95%: -" in text
    assert "% relative, average over 2 sets, 300 utterances, profile plain; not compared: new only in the cand" in text


def test_the_same_predictions_show_no_difference() -> None:
    lines = predictions(0.3)
    delta = compare(lines, lines, ["plain"], 1)[-1]
    assert (delta.difference.low, delta.difference.value, delta.difference.high) == (0, 0, 0)
    assert verdict(delta.difference) == "no difference shown"


def test_a_perfect_baseline_has_no_relative_change() -> None:
    assert compare(predictions(0.0), predictions(0.1), ["plain"], 1)[-1].relative == 0.0


def changed(lines: list[dict[str, Any]], **values: str) -> list[dict[str, Any]]:
    return [{**lines[0], **values}, *lines[1:]]


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        (predictions(0.2)[1:], "test set news: 1 utterances are in one benchmark only"),
        (changed(predictions(0.2), id="news/other"), "test set news: 2 utterances are in one"),
        (changed(predictions(0.2), reference="אחר"), "test set news: 1 references differ"),
        (predictions(0.2, sets=["other"]), "the baseline has calls, news, the candidate other"),
        ([], "the candidate none"),
    ],
)
def test_unlike_things_are_not_compared(candidate: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        paired_lines(predictions(0.3), candidate)


def test_order_does_not_matter_and_new_sets_are_named() -> None:
    before, after = predictions(0.3), predictions(0.2, sets=["news", "calls", "more"])
    ours, theirs, alone = paired_lines(before[::-1], after)
    assert [line["id"] for line in ours] == [line["id"] for line in theirs]
    assert alone == {"baseline": [], "candidate": ["more"]}


def round_with(runs: Path, name: str, lines: list[dict[str, Any]], parent: str | None = None) -> RoundDir:
    spec = {
        "round": name,
        "parent": parent,
        "model": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
        "data": {"sources": [{"name": "crowd", "path": "crowd"}]},
        "train": {"global_batch": 4, "phases": [{"name": "A", "epochs": 1, "rates": {"all": 1e-3}}]},
        "benchmark": {"sets": [{"name": "news", "path": "news"}], "profiles": ["hebrew-fair", "plain"]},
    }
    round_dir = create(runs, parse(spec, RoundSpec, name), ClusterSpec(), runs)
    path = round_dir.folder("benchmark") / "predictions.jsonl"
    with atomic(path) as file:
        file.writelines(map(json_line, lines))
    write_record(
        round_dir.folder("benchmark") / "record.json",
        Record(
            stage="benchmark",
            status="succeeded",
            round=name,
            spec=round_dir.spec.digest,
            seed=42,
            inputs={},
            outputs={"predictions.jsonl": file_digest(path)},
            circumstances=Circumstances(started="now", seconds=1, host="here", git=None, versions={}),
        ),
    )
    return round_dir


def test_the_stage_writes_a_verdict_and_a_table(tmp_path: Path) -> None:
    round_with(tmp_path, "r1", predictions(0.3))
    candidate = round_with(tmp_path, "r2", predictions(0.2), parent="r1")
    record, done = perform(STAGE, candidate)
    assert done
    assert record.results["verdict"] == "better"
    assert (record.results["baseline"], record.results["candidate"]) == ("r1", "r2")
    with (candidate.folder("compare") / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(record.results["deltas"]) == 12
    assert rows[0]["group"] == "set:calls"
    assert float(rows[0]["difference"]) == pytest.approx(record.results["deltas"][0]["difference"]["value"], abs=1e-6)
    assert perform(STAGE, candidate)[1] is False


def test_the_stage_gives_the_same_bytes_again(tmp_path: Path) -> None:
    round_with(tmp_path, "r1", predictions(0.3))
    candidate = round_with(tmp_path, "r2", predictions(0.28), parent="r1")
    first = perform(STAGE, candidate)[0]
    (candidate.folder("compare") / "record.json").unlink()
    assert perform(STAGE, candidate)[0].digest == first.digest


def test_without_a_parent_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="r1 has nothing to compare with: it has no parent"):
        perform(STAGE, round_with(tmp_path, "r1", predictions(0.3)))


def test_a_parent_without_a_benchmark_is_named(tmp_path: Path) -> None:
    parent = round_with(tmp_path, "r1", predictions(0.3))
    candidate = round_with(tmp_path, "r2", predictions(0.2), parent="r1")
    (parent.folder("benchmark") / "record.json").unlink()
    with pytest.raises(UserError, match="stage benchmark has not run"):
        perform(STAGE, candidate)


def test_changed_predictions_are_refused(tmp_path: Path) -> None:
    parent = round_with(tmp_path, "r1", predictions(0.3))
    candidate = round_with(tmp_path, "r2", predictions(0.2), parent="r1")
    with (parent.folder("benchmark") / "predictions.jsonl").open("a") as file:
        file.write(json_line(predictions(0.3)[0]))
    with pytest.raises(UserError, match="is not what the benchmark wrote"):
        perform(STAGE, candidate)
