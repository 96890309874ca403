"""Everything that follows from a round and a cluster, before any money is spent. Pure functions; no torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from caspi.corpus.manifest import Durations, read_durations
from caspi.errors import UserError
from caspi.families.counts import Counts, parameter_counts
from caspi.files import read_json
from caspi.plan.memory import Memory, group_parameters, micro_batch_seconds
from caspi.records.metrics import metric_lines
from caspi.records.results import AuditResults, ExportResults
from caspi.records.round_dir import RoundDir
from caspi.spec import ClusterSpec, RoundSpec
from caspi.spec.models import CtcModel, is_made_here
from caspi.training.batches import epoch_batches, epoch_size, split_batch, steps_per_epoch
from caspi.training.phases import phase_plans

BATCHES_LOOKED_AT = 200  # of an epoch, evenly spaced: enough for shares, and quick for a million utterances


class _Plan(BaseModel):
    model_config = ConfigDict(frozen=True)


class DataPlan(_Plan):
    """How much there is."""

    known_from: Literal["export", "expected", "nothing"]
    train: int | None = None
    eval: int | None = None
    hours: float | None = None
    subset: float | None = None
    """The share of the sources that the round takes."""
    left_out: int = 0
    """Of train, by the audit."""
    an_epoch: int | None = None
    """Utterances an epoch: without those left out, with the weights of the sources."""


class BatchPlan(_Plan):
    """How a global batch is packed for this cluster."""

    global_batch: int
    world_size: int
    micro_batch_seconds: float
    """The cap: no micro-batch has more padded seconds."""
    micro_batches: tuple[int, int] | None = None
    """Fewest and most a process has in a step."""
    worst_seconds: float | None = None
    speech: float | None = None
    """Share of the frames that are speech and not padding."""


class PhaseInPlan(_Plan):
    """A phase in steps and parameters."""

    name: str
    first_epoch: int
    last_epoch: int
    """Counted from 1, as people do."""
    first_step: int | None
    last_step: int | None
    """The first step and the last one, counted from 0."""
    rates: dict[str, float]
    groups: dict[str, int] | None
    """Parameters of each group that moves."""
    trainable: int | None


class TimePlan(_Plan):
    """Only from a measurement."""

    utterances_per_second: float | None = None
    hours: float | None = None
    cost: str | None = None


class Plan(_Plan):
    """What `caspi plan` prints, and `--json` gives under these names."""

    round: str
    spec: str
    parent: str | None
    family: str
    base: str
    machine: str
    data: DataPlan
    batch: BatchPlan
    steps_per_epoch: int | None
    steps: int | None
    parameters: int | None
    tied: list[str]
    phases: list[PhaseInPlan]
    memory: Memory | None
    time: TimePlan
    audit: str
    warnings: list[str]


def make_plan(spec: RoundSpec, cluster: ClusterSpec, round_dir: RoundDir | None = None) -> Plan:
    """Derive the plan. `round_dir` is the round's directory where it exists already: it knows the export.

    Raises UserError when the round can't run on this cluster, with every reason.
    """
    counts = parameter_counts(spec.model)
    seconds = _durations(round_dir)
    data = _data(spec, round_dir, seconds)
    per_epoch = steps_per_epoch(data.an_epoch, spec.train.global_batch) if data.an_epoch else None
    cap, memory = micro_batch_seconds(spec, cluster, counts)
    _check(spec, cap, counts)
    phases = phase_plans(spec.train, per_epoch or 1)
    last = 0
    shown = []
    for phase in phases:
        groups = {name: group_parameters(counts, spec.train, name) for name in phase.rates} if counts else None
        shown.append(
            PhaseInPlan(
                name=phase.name,
                first_epoch=phase.first_epoch + 1,
                last_epoch=phase.first_epoch + phase.epochs,
                first_step=phase.first_step if per_epoch else None,
                last_step=phase.last_step - 1 if per_epoch else None,
                rates=dict(phase.rates),
                groups=groups,
                trainable=sum(groups.values()) if groups else None,
            )
        )
        last = phase.last_step
    steps = last if per_epoch else None
    return Plan(
        round=spec.round,
        spec=spec.digest,
        parent=spec.parent,
        family=spec.model.family,
        base=spec.model.base,
        machine=_machine(cluster),
        data=data,
        batch=_batch(spec, cluster, seconds, cap),
        steps_per_epoch=per_epoch,
        steps=steps,
        parameters=counts.total if counts else None,
        tied=_tied(spec, counts),
        phases=shown,
        memory=memory,
        time=_time(cluster, round_dir),
        audit=_audit(round_dir),
        warnings=_warnings(spec, steps, memory, counts),
    )


def _tied(spec: RoundSpec, counts: Counts | None) -> list[str]:
    moves = {group.split(":")[0] for phase in spec.train.phases for group in phase.rates}
    return (
        ["lm_head is embed_tokens: where it moves, both move"] if counts and counts.tied and "lm_head" in moves else []
    )


def _durations(round_dir: RoundDir | None) -> Durations | None:
    record = round_dir.record("export") if round_dir else None
    if round_dir is None or record is None or record.status != "succeeded":
        return None
    return read_durations(round_dir.folder("export") / "train.jsonl", _left_out(round_dir))


def _left_out(round_dir: RoundDir) -> list[str]:
    """Ids of the utterances that the audit leaves out of training."""
    path = round_dir.folder("audit") / "left_out.json"
    return list(read_json(path)) if path.exists() else []


def _data(spec: RoundSpec, round_dir: RoundDir | None, durations: Durations | None) -> DataPlan:
    if durations is not None and round_dir is not None:
        export = ExportResults.model_validate(round_dir.succeeded("export").results)
        weights = {source.name: source.weight for source in spec.data.sources}
        counts = [(weights.get(name, 1.0), count) for name, count in durations.by_source.items()]
        return DataPlan(
            known_from="export",
            train=export.train,
            eval=export.eval,
            hours=export.train_hours,
            subset=spec.data.subset,
            left_out=export.train - len(durations.seconds),
            an_epoch=epoch_size(counts),
        )
    if expected := spec.data.expected:
        one_weight = {source.weight for source in spec.data.sources} == {1.0}
        return DataPlan(
            known_from="expected",
            train=expected.train,
            eval=expected.eval,
            hours=expected.hours,
            subset=spec.data.subset,
            an_epoch=expected.train if one_weight else None,
        )
    return DataPlan(known_from="nothing")


def _batch(spec: RoundSpec, cluster: ClusterSpec, durations: Durations | None, cap: float) -> BatchPlan:
    plain = BatchPlan(global_batch=spec.train.global_batch, world_size=cluster.world_size, micro_batch_seconds=cap)
    if durations is None or not len(durations.seconds):
        return plain
    longest = float(max(spec.train.augment.speed) and 1 / min(spec.train.augment.speed))
    seconds = durations.seconds * longest  # slowed down is longer
    batches = epoch_batches(seconds, spec.seed, 0, spec.train.global_batch)
    looked_at = batches[:: max(1, len(batches) // BATCHES_LOOKED_AT)]
    pieces, padded, speech, worst = set(), 0.0, 0.0, 0.0
    for batch in looked_at:
        lengths = seconds[batch]
        for rank in split_batch(lengths, cluster.world_size, cap):
            pieces.add(len(rank))
            for micro in rank:
                cost = float(lengths[micro].max(initial=0.0)) * len(micro)
                padded, speech, worst = padded + cost, speech + float(lengths[micro].sum()), max(worst, cost)
    return plain.model_copy(
        update={
            "micro_batches": (min(pieces), max(pieces)),
            "worst_seconds": worst,
            "speech": round(speech / padded, 4),
        }
    )


def _check(spec: RoundSpec, cap: float, counts: Counts | None) -> None:
    problems = []
    longest = spec.data.keep.seconds[1] / min(spec.train.augment.speed)
    if longest > cap:
        slowed = f" (slowed down to {longest:.0f} s)" if longest > spec.data.keep.seconds[1] else ""
        problems.append(
            f"data.keep.seconds[1] = {spec.data.keep.seconds[1]:g}: one such utterance alone{slowed} does not fit; "
            f"at most {int(cap * min(spec.train.augment.speed))} on this cluster"
        )
    if counts:
        for index, phase in enumerate(spec.train.phases):
            for group in phase.rates:
                try:
                    group_parameters(counts, spec.train, group)
                except UserError as error:
                    problems.append(f"train.phases[{index}].rates: {error}")
    if problems:
        raise UserError(*problems, where=spec.round)


def _time(cluster: ClusterSpec, round_dir: RoundDir | None) -> TimePlan:
    """From this round's own steps so far, scores and checkpoints included, as training last reckoned it; a guess from
    another machine would be a typed number."""
    lines = metric_lines(round_dir.folder("train") / "metrics.jsonl") if round_dir else []
    rates = [line["utterances_per_second"] for line in lines if line["kind"] == "train"]
    forecasts = [line for line in lines if line["kind"] == "forecast"]
    if not forecasts or not rates:
        return TimePlan()
    hours = forecasts[-1]["total_seconds"] / 3600
    price = cluster.gpu.price if cluster.gpu else None
    cost = f"{hours * cluster.world_size * price.amount:.2f} {price.currency}" if price else None
    rate = round(float(np.median(rates)), 2)
    return TimePlan(utterances_per_second=rate, hours=round(hours, 4), cost=cost)


def _audit(round_dir: RoundDir | None) -> str:
    record = round_dir.record("audit") if round_dir else None
    if record is None:
        return "not run"
    if record.status != "succeeded":
        return f"failed: {record.error}"
    results = AuditResults.model_validate(record.results)
    share = results.low_quality
    worst = max(results.domains, key=lambda domain: domain.low_quality.value, default=None)
    domain = f", worst domain {worst.domain} {worst.low_quality.value:.1%}" if worst else ""
    return f"{results.decision}, {share.value:.1%} low quality (95%: {share.low:.1%}-{share.high:.1%}){domain}"


def _warnings(spec: RoundSpec, steps: int | None, memory: Memory | None, counts: Counts | None) -> list[str]:
    found = []
    if steps is not None and spec.train.schedule.warmup_steps >= steps:
        found.append(
            f"train.schedule.warmup_steps = {spec.train.schedule.warmup_steps}: all {steps:,} steps are warm-up"
        )
    if spec.train.evaluate.utterances < 500 and not is_made_here(spec.model.base):
        found.append(
            f"train.evaluate.utterances = {spec.train.evaluate.utterances}: the dev WER moves by points by itself"
        )
    if memory and memory.strategy == "fsdp":
        found.append("the weights and their optimizer do not fit on one GPU: they are sharded over all of them (FSDP)")
    if counts and isinstance(spec.model, CtcModel) and spec.model.vocabulary == "corpus":
        found.append(f"the head is counted with {counts.head_rows} tokens; it gets those of the training text")
    if counts is None:
        found.append(f"{spec.model.base} is not here, so its parameters are not counted")
    return found


def _machine(cluster: ClusterSpec) -> str:
    if cluster.gpu:
        return f"{cluster.world_size} x {cluster.gpu.product} {cluster.gpu.memory / 2**30:.0f} GiB"
    return f"CPU, {cluster.world_size} process{'es' if cluster.world_size > 1 else ''}"
