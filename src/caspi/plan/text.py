"""The plan as people read it: facts, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator

from caspi.plan.derive import Plan
from caspi.plan.memory import Memory
from caspi.training.forecast import MEASURED_STEPS


def render(plan: Plan) -> str:
    """The plan as people read it: facts and what follows from them."""
    column = max(10, *(len(f"phase {phase.name}  ") for phase in plan.phases))
    return "\n".join([_head(plan), "", *(f"{name:<{column}}{line}" for name, line in _lines(plan))]) + "\n"


def _lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """(name, what is said under it)"""
    yield "data", _data_line(plan)
    yield from zip(("batch", ""), _batch_lines(plan), strict=False)
    for index, phase in enumerate(plan.phases):
        yield f"phase {phase.name}", "   ".join(_phase_parts(plan, index))
    for phase in plan.phases:
        yield f"rates {phase.name}", ", ".join(f"{group} {rate:.1e}" for group, rate in phase.rates.items())
    yield from (("tied", line) for line in plan.tied)
    if plan.memory:
        yield "memory", _memory_line(plan.memory)
    yield "time", _time_line(plan)
    yield "audit", plan.audit
    yield from (("note", warning) for warning in plan.warnings)


def _phase_parts(plan: Plan, index: int) -> list[str]:
    """Epochs, steps, parameters."""
    phase = plan.phases[index]
    epochs = f"epochs {phase.first_epoch}-{phase.last_epoch}"
    if phase.first_epoch == phase.last_epoch:
        epochs = f"epoch {phase.first_epoch}"
    steps = "steps not known before the export"
    if phase.first_step is not None:
        steps = f"steps {phase.first_step:,}-{phase.last_step:,}"
    parts = [f"{epochs:<11}", f"{steps:<19}"]
    if phase.trainable is not None:
        parts.append(f"{phase.trainable:,} of {plan.parameters:,} parameters move")
    if index and (new := [group for group in phase.rates if group not in plan.phases[index - 1].rates]):
        parts.append(f"(+ {', '.join(new)})")
    return parts


def _head(plan: Plan) -> str:
    parent = f"   parent {plan.parent}" if plan.parent else ""
    return f"{plan.round}  sha256:{plan.spec[:12]}{parent}   {plan.family} {plan.base}   {plan.machine}"


def _data_line(plan: Plan) -> str:
    data = plan.data
    if data.known_from == "nothing":
        return "not known yet: run `caspi run` or `caspi stage export`, or say data.expected in the round"
    hours = f"   {data.hours:.2f} h" if data.hours else ""
    source = (
        "exported, the ledger balances" if data.known_from == "export" else "expected by the round, not exported yet"
    )
    again = f", a subset of {100 * data.subset:.4g}%" if data.subset else ""
    again += f", {data.left_out:,} left out by the audit" if data.left_out else ""
    if data.train and data.an_epoch and data.an_epoch != data.train - data.left_out:
        again += f", {data.an_epoch:,} an epoch by weight"
    return f"{data.train:,} train   {data.eval:,} dev{hours}   ({source}{again})"


def _memory_line(memory: Memory) -> str:
    parts = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in memory.parts.items() if size >= 5e7)
    sharded = " sharded over all GPUs (FSDP)" if memory.strategy == "fsdp" else ""
    return f"{memory.total / 1e9:.1f} of {memory.capacity / 1e9:.1f} GB a process{sharded}: {parts}; an estimate"


def _batch_lines(plan: Plan) -> list[str]:
    batch = plan.batch
    who = "a GPU" if "GiB" in plan.machine else "a process"
    cap = f"none over {batch.micro_batch_seconds:.0f} padded seconds"
    if batch.micro_batches is None:
        spread = f" over {batch.world_size}" if batch.world_size > 1 else ""
        return [f"{batch.global_batch} utterances a step{spread}, {cap} {who}; packing is known after the export"]
    low, high = batch.micro_batches
    pieces = f"{low}" if low == high else f"{low}-{high}"
    plural = "es" if high > 1 else ""
    return [
        f"{batch.global_batch} utterances a step, packed into {pieces} micro-batch{plural} {who}; {cap}",
        f"{batch.speech:.1%} of the frames are speech; the worst micro-batch has {batch.worst_seconds:.1f} s",
    ]


def _time_line(plan: Plan) -> str:
    if plan.time.hours is None:
        return f"not measured on this machine yet; after {MEASURED_STEPS} steps this line has hours and cost"
    cost = f", {plan.time.cost}" if plan.time.cost else ""
    hours = f"{plan.time.hours:.1f} h" if plan.time.hours >= 1 else f"{plan.time.hours * 60:.1f} min"
    return f"{hours} at {plan.time.utterances_per_second:.1f} utterances a second (measured){cost}"
