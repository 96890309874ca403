"""When each phase begins, and how fast it goes: all in optimizer steps, derived from epochs. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from caspi.spec.round import Schedule, TrainSpec


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """A phase in steps. Epochs and steps are counted from 0."""

    name: str
    first_epoch: int
    epochs: int
    first_step: int
    last_step: int
    """One past the last step: the first step of the next phase."""
    rates: Mapping[str, float]
    """Peak learning rate by parameter group."""


def phase_plans(train: TrainSpec, steps_per_epoch: int) -> list[PhasePlan]:
    """The phases of a round, one after another without a gap."""
    plans = []
    epoch = 0
    for phase in train.phases:
        plans.append(
            PhasePlan(
                name=phase.name,
                first_epoch=epoch,
                epochs=phase.epochs,
                first_step=epoch * steps_per_epoch,
                last_step=(epoch + phase.epochs) * steps_per_epoch,
                rates=dict(phase.rates),
            )
        )
        epoch += phase.epochs
    return plans


def rate_factor(schedule: Schedule, phases: Sequence[PhasePlan], step: int) -> float:
    """What step `step` (from 0) multiplies every peak learning rate by.

    Warm-up is linear to 1 over the first `warmup_steps`; then the shape falls to 0 at the end of the last phase
    (noam: as 1/sqrt(step), whatever the end). Each later phase climbs anew over `rewarm_steps` to where the shape is
    by then. Rates in a round are always peaks. NeMo's `lr` for Noam is not one but a multiplier (Vaswani et al. 2017):
    peak = lr * d_model^-0.5 * warmup_steps^-0.5, so 5.0 at width 512 and 10,000 steps of warm-up is 2.2e-3.
    """
    total = phases[-1].last_step
    warmup = min(schedule.warmup_steps, total)
    if step < warmup:
        factor = (step + 1) / warmup
    elif schedule.shape == "noam":
        factor = math.sqrt(max(1, warmup) / (step + 1))
    else:
        factor = _falling(schedule.shape, (step - warmup) / max(1, total - warmup))
    begun = max((phase.first_step for phase in phases if phase.first_step <= step), default=0)
    if begun > 0 and step - begun < schedule.rewarm_steps:
        factor *= (step - begun + 1) / schedule.rewarm_steps
    return factor


def _falling(shape: Literal["cosine", "linear", "constant"], done: float) -> float:
    """The factor after the share `done` in [0, 1] of the steps that follow warm-up."""
    match shape:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done
        case "constant":
            return 1.0
