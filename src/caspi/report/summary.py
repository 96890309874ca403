"""The first screen: key facts, and the charts that answer "how good is it" and "is the data sound"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from markupsafe import Markup

from caspi.records.record import Record
from caspi.records.results import (
    AuditResults,
    BenchmarkResults,
    CompareResults,
    Delta,
    Estimate,
    ExportResults,
    Score,
    TrainResults,
)
from caspi.report.charts import Interval, Row, interval_chart
from caspi.report.formats import (
    count,
    duration,
    hours,
    interval,
    percent,
    plain,
    plural,
    signed,
    signed_interval,
)
from caspi.spec import ClusterSpec, RoundSpec
from caspi.spec.data import AuditSpec

Grouped = TypeVar("Grouped", Score, Delta)


@dataclass(frozen=True, slots=True)
class Fact:
    """One key figure."""

    label: str
    value: str
    note: str


def facts(
    spec: RoundSpec,
    cluster: ClusterSpec,
    export: ExportResults | None,
    audit: AuditResults | None,
    train: TrainResults | None,
    trained: Record | None,
    benchmark: BenchmarkResults | None,
    compare: CompareResults | None,
) -> list[Fact]:
    """Those that are known so far."""
    found: list[Fact] = []
    score = decisive(benchmark.scores) if benchmark else None
    if score:
        found.append(Fact("Word error rate", percent(score.wer.value), f"95%: {interval(score.wer)}, {_of(score)}"))
    delta = decisive(compare.deltas) if compare else None
    if delta:
        found.append(
            Fact(
                f"Against {spec.parent}",
                signed(delta.difference.value, " points"),
                f"95%: {signed_interval(delta.difference)}, {signed(delta.relative)} relative",
            )
        )
    if export:
        left_out = f", {count(audit.left_out)} left out" if audit and audit.left_out else ""
        found.append(Fact("Training data", hours(export.train_hours), f"{plural(export.train, 'utterance')}{left_out}"))
    if trained:
        steps = f"{plural(train.steps, 'step')}, " if train else ""
        where = trained.circumstances.host
        found.append(Fact("Training", duration(_seconds(trained)), f"{steps}on {where}"))
        found.append(_cost(cluster, trained))
    return found


def decisive(items: Sequence[Grouped]) -> Grouped | None:
    """The one that decides: the average of the sets (all pooled without it) under the first profile."""
    first = [item for item in items if item.profile == items[0].profile]
    for group in ("average", "all"):
        for item in first:
            if item.group == group:
                return item
    return first[0] if first else None


def in_order(items: Sequence[Grouped], profile: str) -> list[Grouped]:
    """Those of a profile: the average, the test sets, the domains, all pooled."""
    order = {"average": 0, "set": 1, "domain": 2, "all": 3}
    chosen = [item for item in items if item.profile == profile]
    return sorted(chosen, key=lambda item: order.get(item.group.split(":")[0], 4))


def profiles(items: Sequence[Grouped]) -> list[str]:
    return list(dict.fromkeys(item.profile for item in items))


def group_name(group: str) -> str:
    """`set:studio` -> studio."""
    names = {"all": "All utterances pooled", "average": "Average of the test sets"}
    return names.get(group, group.partition(":")[2] or group)


def group_kind(group: str) -> str:
    return {"set": "test set", "domain": "domain"}.get(group.partition(":")[0], "")


def headline(spec: RoundSpec, results: BenchmarkResults | None, baseline: BenchmarkResults | None) -> Markup:
    """WER by test set with intervals, the parent's above the round's own."""
    if results is None or not results.scores:
        return Markup("")
    profile = results.scores[0].profile
    before = {score.group: score for score in in_order(baseline.scores, profile)} if baseline else {}
    if _sets(before) != _sets({score.group for score in results.scores}):
        before.pop("average", None)  # an average over other sets says nothing about this one
    scores = [score for score in in_order(results.scores, profile) if score.group.startswith(("average", "set:"))]
    if len(scores) == 2:  # the average of one set is that set
        scores = scores[1:]
    rows: list[Row] = []
    for score in scores:
        earlier = before.get(score.group)
        intervals = [_interval(earlier.wer, "baseline", hollow=True)] if earlier else []
        limits: list[tuple[float, str]] = []
        note = plural(score.utterances, "utterance")
        if spec.benchmark.target and score is scores[0]:
            limits = [(spec.benchmark.target.at_most / 100, f"target: at most {spec.benchmark.target.at_most:g}%")]
            note += f", {limits[0][1]}"
        rows.append(
            Row(
                label=group_name(score.group),
                note=note,
                intervals=[*intervals, _interval(score.wer, "candidate")],
                limits=limits,
            )
        )
    return interval_chart("WER by test set, with 95% intervals", rows, lambda share: percent(share, 0))


def _sets(groups: Iterable[str]) -> set[str]:
    return {group for group in groups if group.startswith("set:")}


def audit_chart(spec: AuditSpec, results: AuditResults | None) -> Markup:
    """The share of low-quality utterances, overall and by domain, against the limits of the round."""
    if results is None:
        return Markup("")

    def limits(name: str) -> list[tuple[float, str]]:
        proceed, caution = getattr(spec.proceed, name), getattr(spec.caution, name)
        return [(proceed, f"PROCEED up to {proceed:.0%}"), (caution, f"CAUTION up to {caution:.0%}")]

    def said(name: str) -> str:
        return ", ".join(text for _, text in limits(name))

    rows = [Row("All", said("low_quality"), [_interval(results.low_quality, "candidate")], limits("low_quality"))]
    rows += [
        Row(
            domain.domain,
            said("any_domain"),
            [_interval(domain.low_quality, "candidate")],
            limits("any_domain"),
        )
        for domain in results.domains
    ]
    return interval_chart("Low quality, with 95% intervals", rows, lambda share: percent(share, 0))


def _interval(estimate: Estimate, tone: str, hollow: bool = False) -> Interval:
    text = (
        f"{percent(estimate.value)} ({interval(estimate)})" if estimate.low < estimate.high else percent(estimate.value)
    )
    return Interval(estimate.value, estimate.low, estimate.high, tone, text, hollow)


def _cost(cluster: ClusterSpec, trained: Record) -> Fact:
    """GPU hours as measured, else as the cluster file and the time of training say."""
    if cluster.gpu is None:
        return Fact("GPU hours", "0", f"trained on CPU, {plural(cluster.world_size, 'process', 'processes')}")
    measured: Any = trained.circumstances.figures.get("gpu_hours")
    gpu_hours = float(measured) if _number(measured) else _seconds(trained) / 3600 * cluster.world_size
    note = f"{cluster.world_size} × {cluster.gpu.product}"
    if cluster.gpu.price is None:
        return Fact("GPU hours", plain(gpu_hours), note)
    price = cluster.gpu.price
    return Fact("Cost", f"{gpu_hours * price.amount:.2f} {price.currency}", f"{plain(gpu_hours)} GPU hours, {note}")


def _seconds(trained: Record) -> float:
    """Of training in all: the engine counts what earlier, killed runs of it did; the record only its own."""
    measured: Any = trained.circumstances.figures.get("seconds")
    return float(measured) if _number(measured) else trained.circumstances.seconds


def _of(score: Score) -> str:
    return "average of the test sets" if score.group == "average" else plural(score.utterances, "utterance")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
