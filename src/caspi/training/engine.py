"""The training loop: one, for every family, on one process or many. Read `train`, then `Run` from the top.

What it promises, each with a test: the loss and gradient of a global batch do not depend on how it is split; the
global batches do not depend on the number of processes; killed at any moment it goes on as if nothing had been;
what does not belong to a phase does not move in it; no checkpoint is ever half there.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError

from caspi.corpus.manifest import Utterance
from caspi.errors import Diverged, OutOfBudget, Preempted, StageFailed, UserError
from caspi.families.base import Family, Model
from caspi.files import no_space_left
from caspi.records.results import Adapters, AverageScore, DevScore, PhaseResults, SourceSeen, TrainWarning
from caspi.spec import ClusterSpec, RoundSpec
from caspi.training.averaging import Average
from caspi.training.averaging import average as average_of
from caspi.training.batches import check_fits
from caspi.training.checkpoint import (
    Checkpoint,
    State,
    latest_checkpoint,
    newest_checkpoint,
    prune,
    ranked,
    read_checkpoint,
    save_checkpoint,
)
from caspi.training.clock import Clock, seconds_a_byte
from caspi.training.data import MicroBatch, Orders, Reader, Speech, background, step_batches
from caspi.training.distributed import Processes, identical
from caspi.training.evaluation import Evaluation
from caspi.training.forecast import MEASURED_STEPS, Pace, forecast, over_budget, seconds_left
from caspi.training.guards import check_spelling, trainable
from caspi.training.journal import Journal
from caspi.training.lora import Adapted, with_adapters
from caspi.training.memory_ladder import ShortOfMemory, lowered, remember, remembered, worst
from caspi.training.mixing import epochs_by_source
from caspi.training.optimizer import PhaseOptimizer
from caspi.training.phases import PhasePlan, phase_plans, rate_factor
from caspi.training.sharding import gathered, replicated, shard, whole_network
from caspi.training.stopping import StopRequest, budget, check_finite, check_wer, no_gain, stop_requests
from caspi.training.watch import Watch

BUDGET = "budget"  # a warning that depends on the clock: said and logged, and no result


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
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Whether every process holds all weights and their optimizer, or its share of them."""


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
    score: DevScore
    """Of what was chosen."""
    average: AverageScore | None
    """Of the average, chosen or not."""
    sources: dict[str, SourceSeen]
    warnings: list[TrainWarning]
    adapters: Adapters | None
    left_out: dict[str, int]
    """Utterances that the model can't learn from, by reason."""


def train(work: Work, ranks: Processes) -> Trained:
    """Train to the end. Called again after any interruption, it goes on from the newest whole checkpoint.

    Raises Preempted after SIGTERM (a checkpoint was saved), Diverged, OutOfBudget, StageFailed when the disk is full,
    or UserError before it starts.
    """
    if not work.train:
        raise UserError("there is no utterance to train on; look at export/ledger.json for what was dropped, and why")
    if not work.dev:
        raise UserError("there is no dev utterance to score; raise data.split.eval")
    try:
        with stop_requests() as stop:
            return _train(Run(work, ranks, stop))
    except (OSError, SafetensorError) as error:
        if not no_space_left(error):
            raise
        last = latest_checkpoint(work.folder)
        kept = f"the last checkpoint (step {last.step:,}) is whole" if last else "there is no checkpoint yet"
        raise StageFailed(
            f"no space left on {work.folder}: {kept}; free some space or enlarge the claim, then run the same again"
        ) from None


def _train(run: Run) -> Trained:
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
        # Checkpoints have the adapters merged; training goes on from the base and the adapters beside it.
        start = checkpoint.path if checkpoint and not self.settings.lora else work.base
        loaded = work.family.load(start, spec.model, ranks.device)
        self.model = with_adapters(loaded, self.settings, spec.seed, checkpoint.path if checkpoint else None)
        if ranks.device.type == "cuda":
            self.model.enable_recompute()  # what the cap on a micro-batch is reckoned with
        self.step = checkpoint.state.step if checkpoint else 0
        self.dev = list(checkpoint.state.dev) if checkpoint else []
        self.skipped = checkpoint.state.skipped if checkpoint else 0

        check_spelling(self.model, [one.text for one in (*work.train, *work.dev)])
        utterances, self.left_out = trainable(self.model, work.train, max(self.settings.augment.speed))
        lengths = np.array([utterance.seconds for utterance in utterances]) / min(self.settings.augment.speed)
        self.longest = float(lengths.max())
        check_fits(lengths, work.max_padded_seconds)
        self.cap = ranks.from_leader(remembered(work.folder, work.max_padded_seconds))
        self.orders = Orders(spec, utterances, ranks.rank, ranks.world_size, self.cap)
        self.phases = phase_plans(self.settings, self.orders.steps_per_epoch)
        self.phase_results = [_phase_results(self.model, phase) for phase in self.phases]
        self.total = self.phases[-1].last_step
        self.speech = Speech(spec, utterances, work.reader, self.model)
        self.evaluation = Evaluation(spec, work.dev, work.reader, ranks, work.max_padded_seconds, work.cluster.workers)
        self.budget = budget(self.settings.stop, work.cluster, ranks.world_size)
        self.stopped = no_gain(self.settings.stop, self.dev)
        self.clock = Clock()
        state = checkpoint.state.watch if checkpoint else {}
        self.watch = Watch(self.settings, spec.model.family, self.orders.steps_per_epoch, state)
        self.journal = Journal(
            spec,
            work.cluster,
            work.folder,
            ranks,
            watch=self.watch,
            clock=self.clock,
            step=self.step,
            total=self.total,
            spent=checkpoint.state.seconds if checkpoint else 0.0,
        )
        # Before the first step: freeing so much memory at once makes glibc keep more of it, which makes steps faster.
        self.seconds_a_byte = seconds_a_byte(work.folder) if ranks.leader else 0.0
        if work.strategy == "fsdp" and ranks.world_size > 1:
            self._check_identical()
            shard(self.model, self.settings.precision, ranks)

    def train_phase(self, phase: PhasePlan) -> None:
        """Every step of a phase that is still to take."""
        if self.stopped or self.step >= phase.last_step:
            return
        settings = self.settings
        optimizer = PhaseOptimizer(self.model, phase, settings.optimizer, settings.precision, self.ranks)
        if self.resumed and self.resumed.state.phase == phase.name and self.step > phase.first_step:
            optimizer.restore(self.resumed.optimizer())
        self._check_identical()
        self.clock.begin_phase()
        while self.step < phase.last_step and not self.stopped:
            try:
                self.rehearse(phase, optimizer)
                self.take_steps(phase, optimizer)
            except ShortOfMemory as short:
                self.shrink(short)

    def rehearse(self, phase: PhasePlan, optimizer: PhaseOptimizer) -> None:
        """The micro-batch of the phase that needs most memory, dry: what does not fit shows now, not hours later."""
        order = worst(self.orders, self.step, phase.last_step)
        (micro_batch,) = background(self.speech, [order], min(1, self.work.cluster.workers), pin=False)
        with self.clock.aside("rehearsal"):
            optimizer.rehearse(micro_batch)

    def take_steps(self, phase: PhasePlan, optimizer: PhaseOptimizer) -> None:
        """From where training stands to the end of the phase."""
        settings, workers = self.settings, self.work.cluster.workers
        steps = step_batches(self.speech, self.orders, self.step, phase.last_step, workers, self.ranks)
        for micro_batches in self.clock.waiting(steps):
            self.take_step(phase, optimizer, micro_batches)
            gained = self.evaluate(phase) if self._due(phase, settings.evaluate.every_steps) else False
            if gained or self.stopped or self._due(phase, settings.keep.every_steps):
                self.save(phase, optimizer)
            self.stop_if_asked(phase, optimizer)
            if self.stopped:
                return

    def shrink(self, short: ShortOfMemory) -> None:
        """Smaller micro-batches from here on; the step that did not fit is taken again.

        Where weights are sharded the other processes wait for this one in the middle of their step: it ends, and
        all start again with the smaller cap.
        """
        before, self.cap = self.cap, lowered(self.cap, self.longest)
        if self.ranks.leader or not short.together:
            remember(self.work.folder, self.work.max_padded_seconds, self.cap)
        what = f"out of memory after step {self.step}: micro-batches of {self.cap:.1f} instead of {before:.1f} s"
        if not short.together:
            raise Preempted(f"{what}; run the same command again, it goes on from the newest checkpoint")
        self.orders = Orders(self.work.spec, self.speech.utterances, self.ranks.rank, self.ranks.world_size, self.cap)
        self.journal.write({"kind": "memory", "step": self.step, "padded_seconds": self.cap, "before": before})

    def take_step(self, phase: PhasePlan, optimizer: PhaseOptimizer, micro_batches: Sequence[MicroBatch]) -> None:
        """One optimizer step on one global batch."""
        self.ranks.arrive()
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
        values = {
            "epoch": round(self.step / self.orders.steps_per_epoch, 4),
            "phase": phase.name,
            "loss": loss,
            "grad_norm": norm,
            "rates": {name: rate * factor for name, rate in phase.rates.items()},
            "tokens": int(tokens),
            "utterances": int(utterances),
            "padding": round(1 - seconds / padded, 4),
        }
        self.journal.stepped(self.step, loss, norm, values, last=self.step == phase.last_step)
        scored = self._due(phase, self.settings.evaluate.every_steps)
        if self.clock.phase_steps == MEASURED_STEPS and not scored:  # a score forecasts too
            self.forecast(phase, scored=False)

    def evaluate(self, phase: PhasePlan) -> bool:
        """Score on dev; whether the score is among the best that are kept."""
        with self.clock.aside("evaluation"):
            score = self._scored(self.model)
        self.dev.append(score)
        self.journal.scored(self.dev, phase.name)
        check_wer(self.settings, self.dev)
        if self.clock.phase_steps >= MEASURED_STEPS:
            self.forecast(phase, scored=True)
        self.stopped = no_gain(self.settings.stop, self.dev)
        return score in ranked(tuple(self.dev))[: self.settings.keep.best]

    def forecast(self, phase: PhasePlan, scored: bool) -> None:
        """What all of it will take and cost; `scored`: this step is scored already."""
        results = self.phase_results[self.phases.index(phase)]
        size = 4 * (results.parameters + 2 * results.trainable)  # fp32 weights, and two moments of what moves
        pace = Pace(
            step=self.clock.step_seconds() or 0.0,
            evaluation=self.clock.last("evaluation") or self._part_of_an_evaluation(),
            checkpoint=self.clock.last("checkpoint") or size * self.seconds_a_byte,
        )
        moving = [each.trainable / each.parameters for each in self.phase_results]
        left = seconds_left(self.settings, self.phases, moving, self.step, pace, scored)
        line = forecast(self.step, self.journal.seconds(), left, self.work.cluster, self.ranks.world_size)
        self.journal.write(line)
        if problem := over_budget(line, self.settings.stop.cost):
            self.journal.warn(self.watch.once(self.step, BUDGET, problem))

    def _part_of_an_evaluation(self) -> float:
        """Seconds that one will take, before the first: about four micro-batches of it stand for the others."""
        part = copy(self.evaluation)
        part.batches = part.batches[:: max(1, len(part.batches) // 4)]
        with self.clock.aside("part"), gathered(self.model.network):
            part.score(self.model, self.step, 0.0)
        return (self.clock.last("part") or 0.0) * len(self.evaluation.batches) / len(part.batches)

    def save(self, phase: PhasePlan, optimizer: PhaseOptimizer) -> None:
        """A whole checkpoint of this step; old ones go."""
        state = State(
            identity=self.work.identity,
            step=self.step,
            phase=phase.name,
            dev=tuple(self.dev),
            skipped=self.skipped,
            seconds=self.journal.seconds(),
            versions={name: metadata.version(name) for name in ("torch", "numpy", "safetensors")},
            watch=self.watch.state(),
        )
        with self.clock.aside("checkpoint"):
            moments = optimizer.state()
            with whole_network(self.model.network, keep=self.ranks.leader):
                if self.ranks.leader:
                    save_checkpoint(self.checkpoints, state, self.model, moments)
                    prune(self.checkpoints, self.settings.keep.last, self.settings.keep.best)
            self.ranks.wait()

    def stop_if_asked(self, phase: PhasePlan, optimizer: PhaseOptimizer) -> None:
        """SIGTERM on any rank, or the budget: save, then say so."""
        if self.asked and self.step < self.total:
            self.save(phase, optimizer)
            raise Preempted(f"asked to stop: step {self.step} of {self.total} is saved; run the same command to go on")
        if self.budget:
            try:
                self.budget.check(self.ranks.from_leader(self.journal.seconds()))
            except OutOfBudget:
                self.save(phase, optimizer)
                raise

    def trained(self) -> Trained:
        """The checkpoint that the round asked for, best on dev or last, and what was measured."""
        last = self.checkpoints / f"step-{self.step:06d}"
        chosen = self.best() if self.settings.final == "best" else read_checkpoint(last)
        assert chosen is not None, "the last step of a phase is scored and saved"
        score = next(score for score in self.dev if score.step == chosen.step)
        average = self.average()
        if average and ranked((score, average.score))[0] is average.score:
            chosen, score = average.checkpoint, average.score
        return Trained(
            chosen=chosen,
            score=score,
            average=average.score if average else None,
            steps=self.step,
            phases=self.phase_results,
            dev=self.dev,
            tied=self.model.tied(),
            stopped=self.stopped,
            figures=self._figures(),
            left_out=self.left_out,
            sources=epochs_by_source(self.orders, self.speech.utterances, self.step),
            warnings=[warning for warning in self.watch.warnings if warning.name != BUDGET],
            adapters=self.model.described() if isinstance(self.model, Adapted) else None,
        )

    def best(self) -> Checkpoint | None:
        """The checkpoint that is best on dev, of those on disk."""
        return next(self._best_first(), None)

    def average(self) -> Average | None:
        """The mean of the best checkpoints, scored as what it is: a model on disk. None when the round wants none."""
        if self.settings.average is None:
            return None
        best = self.ranks.from_leader(list(islice(self._best_first(), self.settings.average)))

        def score(folder: Path) -> DevScore:
            return self._scored(self.work.family.load(folder, self.work.spec.model, self.ranks.device))

        average = average_of(self.checkpoints, best, self.ranks, score)
        if average:
            self.journal.averaged(average.score)
        return average

    def close(self) -> None:
        self.journal.close()

    def _found(self) -> Checkpoint | None:
        """The leader looks for a checkpoint, all load the same one."""
        found = newest_checkpoint(self.checkpoints, self.work.identity) if self.ranks.leader else None
        path = self.ranks.from_leader(found.path if found else None)
        return read_checkpoint(path) if path else None

    def _best_first(self) -> Iterator[Checkpoint]:
        paths = (self.checkpoints / f"step-{score.step:06d}" for score in ranked(tuple(self.dev)))
        return (found for path in paths if (found := read_checkpoint(path)))

    def _scored(self, model: Model) -> DevScore:
        with gathered(model.network):
            return self.evaluation.score(model, self.step, self.step / self.orders.steps_per_epoch)

    def _check_identical(self) -> None:
        if not identical(self.ranks, replicated(self.model.network)):
            raise StageFailed(f"step {self.step}: the processes hold different weights; this is a fault of Caspi")

    def _due(self, phase: PhasePlan, every: int) -> bool:
        return self.step % every == 0 or self.step == phase.last_step

    def _figures(self) -> dict[str, Any]:
        ranks, price = self.ranks, self.work.cluster.gpu.price if self.work.cluster.gpu else None
        hours = self.journal.seconds() * ranks.world_size / 3600
        cuda = ranks.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "seconds": self.journal.seconds(),
            "utterances_per_second": round(self.clock.overall(), 2),
            "waited_for_data": round(self.clock.waited_share(), 4),
            "world_size": ranks.world_size,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "gpu_hours": round(hours, 4) if cuda else 0.0,
            "cost": f"{price.amount * hours:.2f} {price.currency}" if price and cuda else None,
            "peak_memory": peak,
            "strategy": self.work.strategy,
            "padded_seconds": round(self.cap, 3),
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
