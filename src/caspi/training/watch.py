"""What looks wrong while training: a loss that jumps or stands still, gradients that vanish or explode, a WER at 100%.

Each is said once in a run, as a warning. A spike stops training, where the round says so. The rules remember a few
numbers, which every checkpoint carries: a resumed run sees what the uninterrupted one would have seen. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from caspi.errors import Diverged
from caspi.records.results import DevScore, TrainWarning
from caspi.spec.round import Spike, TrainSpec

WINDOW = 20  # steps whose median is the level of the loss: one odd batch is no spike
FLOOR = 0.05  # of a token's loss: below it twice as much is still next to nothing
FAINT, FAINT_STEPS = 0.01, 100  # norm of the gradient: what people watch for in their own scripts
STEEP, STEEP_STEPS = 50.0, 20
GAIN, PATIENCE = 0.01, 300  # a loss that gains less than 1% over an epoch (or 300 steps, if that is more) stands still
STUCK_WER, STUCK_SCORES = 0.999, 3


@dataclass(frozen=True, slots=True)
class History:
    """All that the rules depend on, beside the step at hand."""

    losses: tuple[float, ...] = ()
    """Of the last WINDOW steps."""
    lowest: float | None = None
    """The lowest level so far."""
    high: int = 0
    """Steps in a row with the level far above the lowest."""
    faint: int = 0
    steep: int = 0
    """Steps in a row with such a gradient."""
    mark: float | None = None
    """The level that has to be beaten by 1%, and the step that set it."""
    marked: int = 0


def remembered(history: History, step: int, loss: float, norm: float, spike: Spike) -> History:
    """The history after `step`."""
    losses = (*history.losses, loss)[-WINDOW:]
    history = replace(
        history,
        losses=losses,
        faint=history.faint + 1 if norm < FAINT else 0,
        steep=history.steep + 1 if norm > STEEP else 0,
    )
    if len(losses) < WINDOW:
        return history
    level = median(losses)
    lowest = level if history.lowest is None else min(level, history.lowest)
    history = replace(history, lowest=lowest, high=history.high + 1 if level > spike.times * max(lowest, FLOOR) else 0)
    if history.mark is None or level < (1 - GAIN) * history.mark:
        return replace(history, mark=level, marked=step)
    return history


def signs(history: History, step: int, train: TrainSpec, steps_per_epoch: int) -> dict[str, str]:
    """What the history after `step` shows, by name, in words."""
    found = {}
    patience = max(steps_per_epoch, PATIENCE)
    if history.high >= WINDOW:
        found["spike"] = f"the loss spiked: {_levels(history)} for {history.high} steps; lower the rates of this phase"
    if history.faint >= FAINT_STEPS:
        found["vanishing gradient"] = (
            f"the gradient norm is under {FAINT:g} for {FAINT_STEPS} steps: hardly anything moves; "
            "raise the rates, or stop here"
        )
    if history.steep >= STEEP_STEPS:
        found["exploding gradient"] = (
            f"the gradient norm is over {STEEP:g} for {STEEP_STEPS} steps, and is clipped to "
            f"{train.optimizer.clip:g}; lower the rates, or warm up for longer"
        )
    still = history.mark is not None and history.mark > FLOOR and step - history.marked >= patience
    if still and step > train.schedule.warmup_steps and not history.high:
        found["plateau"] = (
            f"the loss stands still: not 1% under {history.mark:.3f} for {patience} steps; "
            "fewer epochs may do as well, other rates better"
        )
    return found


def check_spike(history: History, step: int, spike: Spike | None) -> None:
    """Diverged when the round sets a limit and the loss is up for as long as that."""
    if spike is not None and history.high >= spike.steps:
        raise Diverged(
            f"step {step}: loss spike: {_levels(history)} for {history.high} steps "
            f"(train.stop.spike: {spike.times:g} times for {spike.steps}); lower train.phases[].rates"
        )


def stuck(train: TrainSpec, family: str, dev: Sequence[DevScore]) -> str | None:
    """Why the WER may still be 100% after three scores past warm-up; None when it isn't."""
    after = [score for score in dev if score.step > train.schedule.warmup_steps]
    if len(after) < STUCK_SCORES or min(score.wer for score in after) < STUCK_WER:
        return None
    cause = (
        "the vocabulary of the head or its letter case is not that of the text, or the model still writes blanks "
        "alone, as CTC does at first: then it needs more steps, or a higher rate of lm_head"
        if family == "ctc"
        else "the text is not what the model can write (script, letter case), or the rates are too low"
    )
    return f"dev WER is {after[-1].wer:.1%} after {len(after)} scores past warm-up: {cause}"


class Watch:
    """Applies the rules step by step, and says each thing once."""

    def __init__(self, train: TrainSpec, family: str, steps_per_epoch: int, state: Mapping[str, Any]) -> None:
        """Go on from the `state` of a checkpoint; {} at the beginning."""
        self.train, self.family, self.steps_per_epoch = train, family, steps_per_epoch
        history = dict(state.get("history", {}))
        self.history = History(**{**history, "losses": tuple(history.get("losses", ()))})
        self.warnings = [TrainWarning.model_validate(warning) for warning in state.get("warnings", [])]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        history = {name: getattr(self.history, name) for name in History.__slots__}
        return {
            "history": {**history, "losses": list(self.history.losses)},
            "warnings": [warning.model_dump() for warning in self.warnings],
        }

    def after_step(self, step: int, loss: float, norm: float) -> list[TrainWarning]:
        """What is new. Raises Diverged on a spike that the round does not bear."""
        limit = self.train.stop.spike
        self.history = remembered(self.history, step, loss, norm, limit or Spike())
        found = signs(self.history, step, self.train, self.steps_per_epoch)
        new = [warning for name, message in found.items() for warning in self.once(step, name, message)]
        check_spike(self.history, step, limit)
        return new

    def after_score(self, dev: Sequence[DevScore]) -> list[TrainWarning]:
        """What is new after the last score of `dev`."""
        message = stuck(self.train, self.family, dev)
        return self.once(dev[-1].step, "stuck WER", message) if message else []

    def once(self, step: int, name: str, message: str) -> list[TrainWarning]:
        """The warning, unless it was said before."""
        if any(warning.name == name for warning in self.warnings):
            return []
        self.warnings.append(TrainWarning(step=step, name=name, message=message))
        return self.warnings[-1:]


def _levels(history: History) -> str:
    assert history.lowest is not None
    level = median(history.losses)
    return f"{level:.3f} (median of {WINDOW} steps), {level / max(history.lowest, FLOOR):.1f} times the lowest so far,"
