"""The training loop: one, for every family, on one process or many. Read `train`, then `Run` from the top.

What it promises, each with a test: the loss and gradient of a global batch do not depend on how it is split; the
global batches do not depend on the number of processes; killed at any moment it goes on as if nothing had been;
what does not belong to a phase does not move in it; no checkpoint is ever half there.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caspi.corpus.manifest import Utterance
from caspi.errors import Diverged, OutOfBudget, Preempted, StageFailed, UserError
from caspi.families.base import Family, Model
from caspi.progress import progress
from caspi.records.results import DevScore, PhaseResults
from caspi.spec import ClusterSpec, RoundSpec
from caspi.tracking import Metrics, Tracking
from caspi.training.batches import check_fits
from caspi.training.checkpoint import (
    Checkpoint,
    State,
    newest_checkpoint,
    prune,
    ranked,
    read_checkpoint,
    save_checkpoint,
)
from caspi.training.clock import Clock
from caspi.training.data import MicroBatch, Orders, Reader, Speech, step_batches
from caspi.training.distributed import Processes, identical
from caspi.training.evaluation import Evaluation
from caspi.training.optimizer import PhaseOptimizer
from caspi.training.phases import PhasePlan, phase_plans, rate_factor
from caspi.training.stopping import StopRequest, budget, check_finite, check_wer, no_gain, stop_requests

LOGGED_STEPS = 2000  # about how many lines of metrics.jsonl a run has, however long it is


@dataclass(frozen=True, slots=True)
class Work:
    """What to train, on what, where."""

    spec: RoundSpec
    cluster: ClusterSpec
    family: Family
    base: Path
    """The model folder that training starts from."""
    folder: Path
    """Where metrics and checkpoints go: train/ of the round."""
    train: Sequence[Utterance]
    dev: Sequence[Utterance]
    reader: Reader
    max_padded_seconds: float
    """The most that one micro-batch holds on this cluster."""
    identity: str
    """sha256 of everything that decides the weights; checkpoints of another identity are not continued."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came out."""

    chosen: Checkpoint
    steps: int
    phases: list[PhaseResults]
    dev: list[DevScore]
    tied: list[str]
    stopped: str | None
    figures: dict[str, Any]


def train(work: Work, ranks: Processes) -> Trained:
    """Train to the end. Called again after any interruption, it goes on from the newest whole checkpoint.

    Raises Preempted after SIGTERM (a checkpoint was saved), Diverged, OutOfBudget, or UserError before it starts.
    """
    if not work.train:
        raise UserError("there is no utterance to train on; look at export/ledger.json for what was dropped, and why")
    if not work.dev:
        raise UserError("there is no dev utterance to score; raise data.split.eval")
    with stop_requests() as stop:
        run = Run(work, ranks, stop)
        try:
            for phase in run.phases:
                run.train_phase(phase)
            return run.trained()
        except Diverged as error:
            best = run.best()
            kept = f"the best checkpoint is {best.path}" if best else "there is no checkpoint yet"
            raise Diverged(f"{error}; {kept}") from None
        finally:
            run.close()


class Run:
    """A training run on one rank. `step` counts optimizer steps taken; everything else follows from it."""

    def __init__(self, work: Work, ranks: Processes, stop: StopRequest) -> None:
        self.work, self.ranks, self.stop = work, ranks, stop
        spec, self.settings = work.spec, work.spec.train
        self.checkpoints = work.folder / "checkpoints"
        checkpoint = self._found()
        self.resumed = checkpoint
        self.model: Model = work.family.load(checkpoint.path if checkpoint else work.base, spec.model, ranks.device)
        if ranks.device.type == "cuda":
            self.model.enable_recompute()  # what the cap on a micro-batch is reckoned with
        self.step = checkpoint.state.step if checkpoint else 0
        self.dev = list(checkpoint.state.dev) if checkpoint else []
        self.skipped = checkpoint.state.skipped if checkpoint else 0
        self.seconds_before = checkpoint.state.seconds if checkpoint else 0.0

        lengths = np.array([utterance.seconds for utterance in work.train])
        check_fits(lengths / min(self.settings.augment.speed), work.max_padded_seconds)
        self.orders = Orders(spec, work.train, ranks.rank, ranks.world_size, work.max_padded_seconds)
        self.phases = phase_plans(self.settings, self.orders.steps_per_epoch)
        self.phase_results = [_phase_results(self.model, phase) for phase in self.phases]
        self.total = self.phases[-1].last_step
        self.speech = Speech(spec, work.train, work.reader, self.model)
        self.evaluation = Evaluation(spec, work.dev, work.reader, ranks, work.max_padded_seconds, work.cluster.workers)
        self.budget = budget(self.settings.stop, work.cluster, ranks.world_size)
        self.stopped = no_gain(self.settings.stop, self.dev)

        self.clock = Clock()
        self.metrics = Metrics(work.folder / "metrics.jsonl", self.step) if ranks.leader else None
        self.tracking = Tracking(
            work.cluster.track if ranks.leader else [], work.folder, spec.round, spec.model_dump(mode="json")
        )
        self.bar = progress("train", self.total, "steps", initial=self.step, quiet=not ranks.leader)

    def train_phase(self, phase: PhasePlan) -> None:
        """Every step of a phase that is still to take."""
        if self.stopped or self.step >= phase.last_step:
            return
        settings = self.settings
        with closing(
            PhaseOptimizer(self.model, phase, settings.optimizer, settings.precision, self.ranks)
        ) as optimizer:
            if self.resumed and self.resumed.state.phase == phase.name and self.step > phase.first_step:
                optimizer.restore(self.resumed.optimizer())
            if not identical(self.ranks, self.model.network.state_dict().values()):
                raise StageFailed(f"step {self.step}: the processes hold different weights; this is a fault of Caspi")
            workers = self.work.cluster.workers
            steps = step_batches(self.speech, self.orders, self.step, phase.last_step, workers, self.ranks)
            for micro_batches in self.clock.waiting(steps):
                self.take_step(phase, optimizer, micro_batches)
                gained = self.evaluate(phase) if self._due(phase, settings.evaluate.every_steps) else False
                if gained or self.stopped or self._due(phase, settings.keep.every_steps):
                    self.save(phase, optimizer)
                self.stop_if_asked(phase, optimizer)
                if self.stopped:
                    return

    def take_step(self, phase: PhasePlan, optimizer: PhaseOptimizer, micro_batches: Sequence[MicroBatch]) -> None:
        """One optimizer step on one global batch."""
        tokens, utterances, seconds, padded, skipped, asked = self.ranks.sum(
            sum(m.batch.tokens for m in micro_batches if m.batch),
            sum(len(m.order.utterances) - len(m.skipped) for m in micro_batches),
            sum(m.order.seconds for m in micro_batches),
            sum(m.order.padded for m in micro_batches),
            sum(len(m.skipped) for m in micro_batches),
            float(self.stop.by is not None),
        )
        if tokens == 0:
            names = ", ".join(name for m in micro_batches for name in m.skipped[:1])
            raise StageFailed(f"step {self.step}: none of its audio could be decoded (for example {names})")
        torch.manual_seed(_step_seed(self.work.spec.seed, self.step, self.ranks.rank))
        factor = rate_factor(self.settings.schedule, self.phases, self.step)
        share = optimizer.accumulate(micro_batches, tokens)
        norm = optimizer.update(factor)
        (loss,) = self.ranks.sum(share)
        self.step += 1
        self.skipped += int(skipped)
        self.asked = asked > 0
        check_finite(self.step, loss, norm)
        self.clock.stepped(utterances)
        self._report(
            phase,
            loss,
            norm,
            {name: rate * factor for name, rate in phase.rates.items()},
            tokens,
            utterances,
            padding=1 - seconds / padded,
        )

    def evaluate(self, phase: PhasePlan) -> bool:
        """Score on dev; whether the score is among the best that are kept."""
        with self.clock.aside():
            score = self.evaluation.score(self.model, self.step, self.step / self.orders.steps_per_epoch)
        self.dev.append(score)
        self._write({"kind": "dev", **score.model_dump(), "phase": phase.name, "seconds": self._seconds()})
        self.bar.set_postfix_str(self._facts(), refresh=False)
        check_wer(self.settings, self.dev)
        self.stopped = no_gain(self.settings.stop, self.dev)
        return score in ranked(tuple(self.dev))[: self.settings.keep.best]

    def save(self, phase: PhasePlan, optimizer: PhaseOptimizer) -> None:
        """A whole checkpoint of this step; old ones go."""
        state = State(
            identity=self.work.identity,
            step=self.step,
            phase=phase.name,
            dev=tuple(self.dev),
            skipped=self.skipped,
            seconds=self._seconds(),
            versions={name: metadata.version(name) for name in ("torch", "numpy", "safetensors")},
        )
        with self.clock.aside():
            if self.ranks.leader:
                save_checkpoint(self.checkpoints, state, self.model, optimizer.state())
                prune(self.checkpoints, self.settings.keep.last, self.settings.keep.best)
            self.ranks.wait()

    def stop_if_asked(self, phase: PhasePlan, optimizer: PhaseOptimizer) -> None:
        """SIGTERM on any rank, or the budget: save, then say so."""
        if self.asked and self.step < self.total:
            self.save(phase, optimizer)
            raise Preempted(f"asked to stop: step {self.step} of {self.total} is saved; run the same command to go on")
        if self.budget:
            try:
                self.budget.check(self.ranks.from_leader(self._seconds()))
            except OutOfBudget:
                self.save(phase, optimizer)
                raise

    def trained(self) -> Trained:
        """The checkpoint that the round asked for, best on dev or last, and what was measured."""
        last = self.checkpoints / f"step-{self.step:06d}"
        chosen = self.best() if self.settings.final == "best" else read_checkpoint(last)
        assert chosen is not None, "the last step of a phase is scored and saved"
        return Trained(
            chosen=chosen,
            steps=self.step,
            phases=self.phase_results,
            dev=self.dev,
            tied=self.model.tied(),
            stopped=self.stopped,
            figures=self._figures(),
        )

    def best(self) -> Checkpoint | None:
        """The checkpoint that is best on dev, of those on disk."""
        paths = (self.checkpoints / f"step-{score.step:06d}" for score in ranked(tuple(self.dev)))
        return next((found for path in paths if (found := read_checkpoint(path))), None)

    def close(self) -> None:
        self.bar.close()
        self.tracking.close()
        if self.metrics:
            self.metrics.close()

    def _found(self) -> Checkpoint | None:
        """The leader looks for a checkpoint, all load the same one."""
        found = newest_checkpoint(self.checkpoints, self.work.identity) if self.ranks.leader else None
        path = self.ranks.from_leader(found.path if found else None)
        return read_checkpoint(path) if path else None

    def _due(self, phase: PhasePlan, every: int) -> bool:
        return self.step % every == 0 or self.step == phase.last_step

    def _seconds(self) -> float:
        return round(self.seconds_before + self.clock.seconds(), 3)

    def _report(
        self,
        phase: PhasePlan,
        loss: float,
        norm: float,
        rates: dict[str, float],
        tokens: float,
        utterances: float,
        padding: float,
    ) -> None:
        self.loss = loss
        self.bar.update(1)
        every = max(1, self.total // LOGGED_STEPS)
        if self.step % every and self.step != phase.last_step:
            return
        speed, waited = self.clock.window()
        self._write(
            {
                "kind": "train",
                "step": self.step,
                "epoch": round(self.step / self.orders.steps_per_epoch, 4),
                "phase": phase.name,
                "loss": loss,
                "grad_norm": norm,
                "rates": rates,
                "tokens": int(tokens),
                "utterances": int(utterances),
                "padding": round(padding, 4),
                "utterances_per_second": round(speed, 2),
                "waited": round(waited, 4),
                "seconds": self._seconds(),
            }
        )
        self.bar.set_postfix_str(self._facts(), refresh=False)

    def _facts(self) -> str:
        wer = f"  WER {self.dev[-1].wer:.1%}" if self.dev else ""
        return f"loss {self.loss:.3f}{wer}  {self.clock.speed:.1f} utt/s"

    def _write(self, values: dict[str, Any]) -> None:
        if self.metrics:
            self.metrics.write(values)
            named = {
                f"{values['kind']}/{name}": value for name, value in values.items() if name not in ("kind", "step")
            }
            self.tracking.log(named, self.step)

    def _figures(self) -> dict[str, Any]:
        ranks, price = self.ranks, self.work.cluster.gpu.price if self.work.cluster.gpu else None
        hours = self._seconds() * ranks.world_size / 3600
        cuda = ranks.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "seconds": self._seconds(),
            "utterances_per_second": round(self.clock.overall(), 2),
            "waited_for_data": round(self.clock.waited_share(), 4),
            "world_size": ranks.world_size,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "gpu_hours": round(hours, 4) if cuda else 0.0,
            "cost": f"{price.amount * hours:.2f} {price.currency}" if price and cuda else None,
            "peak_memory": peak,
            "skipped": self.skipped,
        }


def _phase_results(model: Model, phase: PhasePlan) -> PhaseResults:
    """UserError when a group asks for more than the model has: before the first step, not at its phase."""
    groups = model.groups(list(phase.rates))
    return PhaseResults(
        name=phase.name,
        first_step=phase.first_step,
        last_step=phase.last_step,
        trainable=sum(parameter.numel() for group in groups.values() for parameter in group),
        parameters=sum(parameter.numel() for parameter in model.network.parameters()),
        rates=dict(phase.rates),
    )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Dropout is a function of (seed, step, rank), so that a resumed step is the same step."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
