"""The curves of training, from metrics.jsonl: read leniently, since a run may be killed in the middle of a line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from caspi.records.metrics import metric_lines
from caspi.records.results import TrainResults
from caspi.report.charts import Boundary, Format, Series, line_chart, smooth, thin
from caspi.report.formats import percent, plain, plural, rate

MOST = 300  # points of a line: more can't be told apart on a page


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with its heading and what to know about it."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class Metrics:
    """What training logged, one line a step, the last word on each."""

    train: Sequence[dict[str, Any]]
    dev: Sequence[dict[str, Any]]
    warnings: Sequence[dict[str, Any]] = ()
    """Each with its step and its message."""

    @property
    def last_step(self) -> int | None:
        return max((line["step"] for line in (*self.train, *self.dev)), default=None)


def read_metrics(path: Path) -> Metrics:
    """Lines that aren't whole are passed over; after a resume the later line of a step counts."""
    steps: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "dev": {}}
    warnings: dict[str, dict[str, Any]] = {}
    for line in metric_lines(path):
        if line["kind"] in steps:
            steps[line["kind"]][line["step"]] = line
        elif line["kind"] == "warning" and isinstance(line.get("message"), str):
            warnings[line["message"]] = line
    train, dev = ([found[step] for step in sorted(found)] for found in (steps["train"], steps["dev"]))
    return Metrics(train, dev, list(warnings.values()))


def charts(metrics: Metrics, results: TrainResults | None) -> list[Chart]:
    """Loss, error rates, learning rates and speed over steps; those that have data."""
    boundaries = _boundaries(metrics, results)
    last = metrics.last_step or 0
    across = (0.0, float(max(last, results.steps if results else 0)))

    def chart(title: str, note: str, series: Sequence[Series], form: Format, tick: Format = "{:g}".format) -> Chart:
        return Chart(title, note, line_chart(title, series, form, boundaries=boundaries, across=across, tick=tick))

    loss = _points(metrics.train, "loss")
    dev_loss = _points(metrics.dev, "loss")
    wer, cer = _points(metrics.dev, "wer"), _points(metrics.dev, "cer")
    speed = _points(metrics.train, "utterances_per_second")
    chosen = ""
    if results:
        which = "the average of the best" if results.chosen == "average" else f"step {results.chosen_step:,}"
        chosen = f"The model is {which}, WER {percent(results.chosen_wer)}."
    found = [
        chart(
            "Loss",
            _means("Per token.", len(loss)),
            [
                Series("train", thin(loss, MOST), "tone-1", faint=True),
                Series("train", thin(smooth(loss, max(1, len(loss) // 50)), MOST), "tone-1"),
                Series("dev", dev_loss, "tone-2", marked=True),
            ],
            plain,
        ),
        chart(
            "Error rates on dev",
            chosen,
            [Series("WER", wer, "tone-1", marked=True), Series("CER", cer, "tone-2", marked=True)],
            percent,
            lambda share: f"{100 * share:g}%",
        ),
        chart("Learning rates", "By parameter group; a frozen group has none.", _rates(metrics.train), rate, rate),
        chart(
            "Speed",
            _means("Utterances trained a second.", len(speed)),
            [
                Series("speed", thin(speed, MOST), "tone-1", faint=True),
                Series("speed", thin(smooth(speed, max(1, len(speed) // 50)), MOST), "tone-1"),
            ],
            lambda value: f"{plain(value)}/s",
        ),
    ]
    return [chart for chart in found if chart.svg]


def _rates(lines: Sequence[dict[str, Any]]) -> list[Series]:
    rates = [(float(line["step"]), line["rates"]) for line in lines if isinstance(line.get("rates"), dict)]
    groups = dict.fromkeys(name for _, found in rates for name in found)
    series: list[Series] = []
    for index, name in enumerate(groups):
        points = [(step, value if _number(value := found.get(name, 0.0)) else 0.0) for step, found in rates]
        peak = max(value for _, value in points)
        tone = f"tone-{index % 6 + 1}"
        series.append(Series(str(name), thin(points, MOST), tone, label=f"peak {rate(peak)}"))
    return series


def _boundaries(metrics: Metrics, results: TrainResults | None) -> list[Boundary]:
    if results is not None:
        return [Boundary(float(phase.first_step), phase.name) for phase in results.phases]
    found: list[Boundary] = []
    for line in metrics.train:
        name = line.get("phase")
        if isinstance(name, str) and (not found or found[-1].name != name):
            found.append(Boundary(float(line["step"]), name))
    return found


def _points(lines: Iterable[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(float(line["step"]), float(line[key])) for line in lines if _number(line.get(key))]


def _means(text: str, points: int) -> str:
    each = math.ceil(points / MOST)
    return f"{text} Each point is the mean of about {plural(each, 'logged step')}." if each > 1 else text


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
