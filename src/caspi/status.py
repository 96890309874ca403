"""How far a round is, in lines for people and in JSON for machines. Reads records, changes nothing."""

from __future__ import annotations

import fcntl
from typing import Any

from caspi.records.metrics import metric_lines
from caspi.records.record import STAGES, Record, StageName
from caspi.records.results import AuditResults, BenchmarkResults, CompareResults, ExportResults, TrainResults
from caspi.records.round_dir import RoundDir


def describe(round_dir: RoundDir) -> dict[str, Any]:
    """Stable names: round, spec, path, model, stages: {name: {status, seconds, summary}}, cost, next."""
    stages: dict[str, Any] = {}
    for name in STAGES:
        if name == "compare" and not round_dir.spec.parent:
            continue
        record = round_dir.record(name)
        stages[name] = {
            "status": record.status if record else _unfinished(round_dir, name),
            "seconds": record.circumstances.seconds if record else None,
            "summary": summary(record) if record else _progress(round_dir) if name == "train" else None,
        }
    return {
        "round": round_dir.spec.round,
        "spec": round_dir.spec.digest,
        "parent": round_dir.spec.parent,
        "path": str(round_dir.path),
        "model": str(round_dir.model) if round_dir.model.is_dir() else None,
        "stages": stages,
        "cost": _cost(round_dir),
        "next": _next(round_dir),
    }


def render(described: dict[str, Any]) -> str:
    lines = [f"{described['round']}  sha256:{described['spec'][:12]}  {described['path']}"]
    for name, stage in described["stages"].items():
        seconds = f"{_duration(stage['seconds']):>8}" if stage["seconds"] is not None else " " * 8
        lines.append(f"  {name:<10} {stage['status']:<10}{seconds}  {stage['summary'] or ''}".rstrip())
    if described["next"]:
        lines.append(f"  next: {described['next']}")
    return "\n".join(lines) + "\n"


def summary(record: Record) -> str:
    """What a stage found, in one line."""
    if record.status == "failed":
        return str(record.error)
    values = record.results
    match record.stage:
        case "export":
            export = ExportResults.model_validate(values)
            dropped = sum(sum(source.dropped.values()) for source in export.sources)
            return (
                f"{export.train:,} train ({export.train_hours:.2f} h), {export.eval:,} dev, {dropped:,} dropped, "
                f"{sum(one.kept for one in export.sets):,} test; the ledger balances"
            )
        case "audit":
            audit = AuditResults.model_validate(values)
            share = audit.low_quality
            return (
                f"{audit.decision}: {share.value:.1%} low quality (95%: {share.low:.1%}-{share.high:.1%}), "
                f"{audit.left_out:,} left out of training"
            )
        case "train":
            train = TrainResults.model_validate(values)
            stopped = f"; stopped early: {train.stopped}" if train.stopped else ""
            warned = f"; warned of: {', '.join(one.name for one in train.warnings)}" if train.warnings else ""
            cost = record.circumstances.figures.get("cost")
            paid = f", {cost}" if cost else ""
            return f"{train.steps:,} steps, dev WER {train.chosen_wer:.3f} {_chosen(train)}{paid}{stopped}{warned}"
        case "benchmark":
            scores = BenchmarkResults.model_validate(values).scores
            profile = scores[0].profile
            return "WER " + ", ".join(
                f"{score.group.removeprefix('set:')} {score.wer.value:.3f} ({score.wer.low:.3f}-{score.wer.high:.3f})"
                for score in scores
                if score.profile == profile and score.group.startswith("set:")
            )
        case "compare":
            return CompareResults.model_validate(values).sentence
        case "report":
            return "report/index.html"


def _next(round_dir: RoundDir) -> str | None:
    """The command that brings the round forward; None when it is finished."""
    audit = round_dir.record("audit")
    if audit and audit.status == "succeeded" and not round_dir.record("train"):
        decision = audit.results.get("decision")
        if decision == "CAUTION" and not (round_dir.folder("audit") / "approval.json").exists():
            return f'read the findings, then: caspi approve {round_dir.spec.round} --by NAME --reason "..."'
        if decision == "STOP":
            return "mend the data (the report lists the findings), then run the changed round"
    for name in STAGES:
        if name == "compare" and not round_dir.spec.parent:
            continue
        record = round_dir.record(name)
        if record is None or record.status != "succeeded":
            return f"caspi run {round_dir.path}"
    return None


def _unfinished(round_dir: RoundDir, stage: StageName) -> str:
    """Only training leaves something to look at while it runs; the lock tells whether anybody is at work."""
    if stage != "train" or not _progress(round_dir):
        return "to do"
    with (round_dir.path / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "running"
    return "stopped"


def _progress(round_dir: RoundDir) -> str | None:
    """Where an unfinished training stands, from its metrics."""
    lines = metric_lines(round_dir.folder("train") / "metrics.jsonl")
    if not lines:
        return None
    of = {kind: [line for line in lines if line["kind"] == kind] for kind in ("train", "forecast", "warning")}
    loss = f", loss {of['train'][-1]['loss']:.3f}" if of["train"] else ""
    forecast = ""
    if of["forecast"]:
        line = of["forecast"][-1]
        cost = f", {line['cost']:.2f} {line['currency']}" if "cost" in line else ""
        forecast = f", {_duration(line['total_seconds'])} in all{cost} (forecast)"
    budget = ""
    if money := _cost(round_dir):
        limit = f" of {money['limit']:.2f} at most" if money["limit"] else ""
        budget = f", spent {money['spent']:.2f} {money['currency']}{limit}"
    warned = f"; warned of: {', '.join(line['name'] for line in of['warning'])}" if of["warning"] else ""
    return f"at step {lines[-1]['step']:,}{loss}{budget}{forecast}{warned}"


def _cost(round_dir: RoundDir) -> dict[str, Any] | None:
    """What training has cost so far, by the price in the cluster file; None without one, or before training.

    Stable names: spent, forecast (None for the first 100 steps), limit (`train.stop.cost`), currency.
    """
    gpu = round_dir.cluster.gpu
    lines = metric_lines(round_dir.folder("train") / "metrics.jsonl")
    seconds = [line["seconds"] for line in lines if isinstance(line.get("seconds"), int | float)]
    if gpu is None or gpu.price is None or not seconds:
        return None
    priced = [line for line in lines if line["kind"] == "forecast" and line.get("currency") == gpu.price.currency]
    if priced and priced[-1]["total_seconds"]:  # of as many GPUs as there were when it was made
        a_second = priced[-1]["cost"] / priced[-1]["total_seconds"]
    else:
        a_second = gpu.price.amount * round_dir.cluster.world_size / 3600
    limit = round_dir.spec.train.stop.cost
    return {
        "spent": round(seconds[-1] * a_second, 2),
        "forecast": priced[-1]["cost"] if priced else None,
        "limit": limit.amount if limit else None,
        "currency": gpu.price.currency,
    }


def _chosen(train: TrainResults) -> str:
    if train.chosen == "average" and train.average:
        return f"of the average of steps {', '.join(f'{step:,}' for step in sorted(train.average.of))}"
    return f"at step {train.chosen_step:,}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
