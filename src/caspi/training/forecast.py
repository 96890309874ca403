"""How long training will take in all, and what it will cost, from what its first steps took. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caspi.spec.cluster import ClusterSpec
from caspi.spec.round import TrainSpec
from caspi.spec.values import Cost
from caspi.training.phases import PhasePlan

MEASURED_STEPS = 100
"""Steps of a phase before its speed says something."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds, as measured."""

    step: float
    """Of an optimizer step in the phase at hand."""
    evaluation: float
    checkpoint: float


def seconds_left(
    train: TrainSpec,
    phases: Sequence[PhasePlan],
    moving: Sequence[float],
    step: int,
    pace: Pace,
    finished: bool = False,
) -> float:
    """From after `step` to the end: steps, evaluations, checkpoints, and the score of the average.

    `moving` is the share of the parameters that moves in each phase. A step takes one part for the forward pass, one
    for the gradients of activations and one for those of the weights that move; so a phase that has not begun is
    reckoned from the one at hand, which holds to about a tenth. `finished`: whether `step` itself is scored and saved.
    """
    now = next((index for index, phase in enumerate(phases) if step <= phase.last_step), len(phases) - 1)
    seconds = 0.0
    for phase, share in zip(phases, moving, strict=True):
        steps = max(0, phase.last_step - max(step, phase.first_step))
        seconds += steps * pace.step * (2 + share) / (2 + moving[now])
    first = step + 1 if finished else step
    seconds += pace.evaluation * _times(phases, first, train.evaluate.every_steps)
    seconds += pace.checkpoint * _times(phases, first, train.keep.every_steps)
    if train.average:
        seconds += pace.evaluation + pace.checkpoint
    return seconds


def forecast(step: int, spent: float, left: float, cluster: ClusterSpec, world_size: int) -> dict[str, Any]:
    """The line of metrics.jsonl: `seconds` so far, `total_seconds`, and the `cost` of all where a price is known."""
    line: dict[str, Any] = {"kind": "forecast", "step": step, "seconds": spent, "total_seconds": round(spent + left, 1)}
    if cluster.gpu and cluster.gpu.price:
        hours = (spent + left) * world_size / 3600
        line |= {"cost": round(hours * cluster.gpu.price.amount, 2), "currency": cluster.gpu.price.currency}
    return line


def over_budget(line: dict[str, Any], limit: Cost | None) -> str | None:
    """Why the round will stop before its end, by this forecast; None when the money lasts."""
    if limit is None or line.get("currency") != limit.currency or line["cost"] <= limit.amount:
        return None
    return (
        f"at this pace training costs {line['cost']:.2f} {limit.currency} in all, and train.stop.cost is "
        f"{limit.amount:.2f} {limit.currency}: it will stop before its last step"
    )


def _times(phases: Sequence[PhasePlan], first: int, every: int) -> int:
    """How many of the steps from `first` on are multiples of `every`, or the last of a phase."""
    last = phases[-1].last_step
    ends = sum(1 for phase in phases if phase.last_step >= first and phase.last_step % every)
    return last // every - (first - 1) // every + ends
