"""When training stops by itself. Rules are pure functions of what was measured; SIGTERM is listened for here too."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from caspi.errors import Diverged, OutOfBudget, UserError
from caspi.records.results import DevScore
from caspi.spec.cluster import ClusterSpec
from caspi.spec.round import Stop, TrainSpec


def check_finite(step: int, loss: float, norm: float) -> None:
    """Diverged on NaN or infinity; the step has not moved any weight."""
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise Diverged(
                f"step {step}: {name} is {value}; lower train.phases[].rates, or look at the data of this step"
            )


def check_wer(train: TrainSpec, dev: Sequence[DevScore]) -> None:
    """Diverged when the newest WER is above the limit and warm-up is over."""
    limit = train.stop.wer_above
    if limit is None or not dev or dev[-1].step <= train.schedule.warmup_steps:
        return
    if dev[-1].wer > limit:
        raise Diverged(f"step {dev[-1].step}: dev WER {dev[-1].wer:.3f} is above train.stop.wer_above = {limit:g}")


def no_gain(stop: Stop, dev: Sequence[DevScore]) -> str | None:
    """Why to stop early: the best dev WER is too old. None to go on."""
    if stop.no_gain_after_epochs is None or not dev:
        return None
    best = min(dev, key=lambda score: (score.wer, score.step))
    age = dev[-1].epoch - best.epoch
    if age < stop.no_gain_after_epochs:
        return None
    return f"no gain on dev for {age:.1f} epochs: the best WER is {best.wer:.3f} at step {best.step}"


@dataclass(frozen=True, slots=True)
class Budget:
    """What training may cost, and what a second of it costs."""

    limit: float
    currency: str
    per_second: float

    def check(self, seconds: float) -> None:
        spent = seconds * self.per_second
        if spent >= self.limit:
            raise OutOfBudget(
                f"training cost {spent:.2f} {self.currency}, train.stop.cost is {self.limit:.2f} {self.currency}; "
                "the checkpoints so far are kept"
            )


def budget(stop: Stop, cluster: ClusterSpec, world_size: int) -> Budget | None:
    """None when the round sets no limit, or the cluster names no price."""
    price = cluster.gpu.price if cluster.gpu else None
    if stop.cost is None or price is None:
        return None
    if stop.cost.currency != price.currency:
        raise UserError(
            f"train.stop.cost is in {stop.cost.currency}, the price of the cluster in {price.currency}; use one"
        )
    return Budget(stop.cost.amount, price.currency, price.amount * world_size / 3600)


@dataclass(slots=True)
class StopRequest:
    """Whether somebody asked this process to stop."""

    by: str | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen for SIGTERM and Ctrl-C. The first asks to stop after a checkpoint, a second one acts at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: FrameType | None) -> None:
        request.by = signal.Signals(number).name
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
