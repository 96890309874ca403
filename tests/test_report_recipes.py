"""What status, plan and report say of a training's recipe: average, adapters, warnings, sources, forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caspi.corpus.manifest import Utterance, write_manifest
from caspi.plan.derive import make_plan
from caspi.records.metrics import metric_lines
from caspi.records.results import Adapters, AverageScore, SourceSeen, TrainResults, TrainWarning
from caspi.records.round_dir import RoundDir
from caspi.report.render import write_report
from caspi.spec import ClusterSpec
from caspi.status import describe, render, summary
from tests.report_fixture import make_record, make_rounds, write_lines
from tests.test_report import Tree

RECIPE: dict[str, Any] = {
    "average": AverageScore(step=600, epoch=10, wer=0.0876, cer=0.03, loss=0.4, of=[540, 600, 480]),
    "adapters": Adapters(rank=16, alpha=32, matrices=112, parameters=7_340_032),
    "warnings": [TrainWarning(step=321, name="plateau", message="the loss stands still <b>here</b>")],
    "sources": {"crowd": SourceSeen(utterances=860, epochs=10.0), "recital": SourceSeen(utterances=391, epochs=2.5)},
}


@pytest.fixture
def round_dir(tmp_path: Path) -> RoundDir:
    found = make_rounds(tmp_path).first
    one = Utterance("crowd/1", "crowd/1", "shalom", 2.0, "crowd", "phone")
    write_manifest(found.folder("export") / "train.jsonl", [one])
    return found


def _trained(round_dir: RoundDir, **changes: Any) -> str:
    """The record of training rewritten; the words of the report's section on it."""
    record = round_dir.succeeded("train")
    results = TrainResults.model_validate({**record.results, **changes})
    make_record(round_dir, "train", results, inputs=record.inputs)
    return _training(round_dir)


def _training(round_dir: RoundDir) -> str:
    write_report(round_dir)
    root = Tree((round_dir.folder("report") / "index.html").read_text(encoding="utf-8")).root
    return next(section for section in root.all("section") if section.attributes.get("id") == "training").text


def test_the_report_tells_the_recipe(round_dir: RoundDir) -> None:
    said = _trained(round_dir, **RECIPE)
    assert "The average of steps 480, 540, 600 has 8.8%" in said and "The model is the checkpoint of step" in said
    assert "LoRA of rank 16, alpha 32) beside 112 matrices" in said
    assert "Warning at step 321: the loss stands still <b>here</b>" in said
    assert "recital 391 2.50" in said
    chosen = _trained(round_dir, **RECIPE, chosen="average", chosen_wer=0.0876)
    assert "The model is the average of the checkpoints of steps 480, 540, 600, WER 8.8% on dev" in chosen
    assert "The model is the checkpoint of" not in chosen


def test_a_record_from_before_says_nothing_of_it(round_dir: RoundDir) -> None:
    """Records are read leniently: one without these fields is still a record."""
    values = round_dir.succeeded("train").results
    old = TrainResults.model_validate(
        {name: value for name, value in values.items() if name not in {*RECIPE, "chosen"}}
    )
    assert (old.average, old.adapters, old.warnings, old.sources, old.chosen) == (None, None, [], {}, "step")
    said = _training(round_dir)
    assert not any(word in said for word in ("average of", "LoRA", "Warning", "Sources"))


def test_status_names_the_average_and_the_warnings(round_dir: RoundDir) -> None:
    _trained(round_dir, **RECIPE, chosen="average", chosen_wer=0.0876)
    said = summary(round_dir.succeeded("train"))
    assert said == "600 steps, dev WER 0.088 of the average of steps 480, 540, 600; warned of: plateau"


LINES = [
    {"kind": "train", "step": 100, "loss": 1.5, "utterances_per_second": 12.0, "seconds": 400.0},
    {"kind": "forecast", "step": 100, "seconds": 400.0, "total_seconds": 7100.0, "cost": 5.9, "currency": "USD"},
    {"kind": "warning", "step": 120, "name": "vanishing gradient", "message": "the gradient norm is under 0.01"},
    {"kind": "train", "step": 130, "loss": 1.25, "utterances_per_second": 14.0, "seconds": 500.0},
    {"kind": "forecast", "step": 130, "seconds": 500.0, "total_seconds": 7200.0, "cost": 6.0, "currency": "USD"},
]


def test_a_running_round_shows_its_forecast(round_dir: RoundDir) -> None:
    (round_dir.folder("train") / "record.json").unlink()
    write_lines(round_dir.folder("train") / "metrics.jsonl", LINES)
    with (round_dir.folder("train") / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"train","step":131,"lo')  # torn: it was killed
    said = render(describe(round_dir))
    assert "at step 130, loss 1.250, 2:00 h in all, 6.00 USD (forecast); warned of: vanishing gradient" in said
    assert "Warning at step 120: the gradient norm is under 0.01" in _training(round_dir)
    gpu = {"gpus_per_node": 2, "gpu": {"product": "A100", "memory": "40GiB", "price": "1.5 USD/h"}}
    time = make_plan(round_dir.spec, ClusterSpec.model_validate(gpu), round_dir).time
    assert (time.hours, time.cost, time.utterances_per_second) == (2.0, "6.00 USD", 13.0)


def test_without_a_forecast_the_plan_has_no_time(round_dir: RoundDir) -> None:
    write_lines(round_dir.folder("train") / "metrics.jsonl", LINES[:1])
    assert make_plan(round_dir.spec, ClusterSpec(), round_dir).time.hours is None


def test_lines_that_are_no_metrics_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind":"train","step":1}\n[1]\n{"step":2}\n{"kind":"dev","step":true}\n{"kind":"dev","step":3}\nx'
    )
    assert metric_lines(path) == [{"kind": "train", "step": 1}, {"kind": "dev", "step": 3}]
    assert metric_lines(tmp_path / "none.jsonl") == []
