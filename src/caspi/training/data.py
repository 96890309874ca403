"""From utterances to padded micro-batches, in worker processes, in an order that any step can be resumed at."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from caspi.corpus.audio import AudioError
from caspi.corpus.manifest import Utterance
from caspi.errors import CaspiError, StageFailed
from caspi.families.base import Batch, Clip, Example, Model
from caspi.orphans import die_with_parent
from caspi.spec import RoundSpec
from caspi.training.augment import augmented, augmented_rng, mask, speed_factors, utterance_keys
from caspi.training.batches import epoch_batches, padded_seconds, split_batch, steps_per_epoch
from caspi.training.distributed import Processes

PREFETCH = 8  # micro-batches a worker is ahead: a step may need several at once


class Reader(Protocol):
    """Reads the audio of an utterance; corpus.audio.AudioReader is one."""

    def read(self, audio: str) -> Clip: ...


@dataclass(frozen=True, slots=True)
class Order:
    """Which utterances one micro-batch takes, and how each is augmented. What a data worker is asked for."""

    step: int
    epoch: int
    last: bool
    """Whether it is this rank's last micro-batch of the step."""
    utterances: tuple[int, ...]
    copies: tuple[int, ...]
    """How many times each was already taken in this epoch."""
    speeds: tuple[float, ...]
    seconds: float
    padded: float


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward pass takes. `batch` is None where a rank has nothing to do."""

    order: Order
    batch: Batch | None
    skipped: tuple[str, ...] = ()
    """Ids of utterances whose audio could not be decoded."""
    problem: CaspiError | None = None
    """What made it impossible; raised by whoever takes it from the loader."""

    def pin_memory(self) -> MicroBatch:
        if self.batch is None:
            return self
        tensors = {name: tensor.pin_memory() for name, tensor in self.batch.tensors.items()}
        return replace(self, batch=Batch(tensors, self.batch.tokens))


class Orders:
    """The order book of one rank: everything that it trains on, from any step to the end."""

    def __init__(
        self,
        spec: RoundSpec,
        utterances: Sequence[Utterance],
        rank: int,
        world_size: int,
        max_padded_seconds: float,
    ) -> None:
        self.spec, self.rank, self.world_size, self.cap = spec, rank, world_size, max_padded_seconds
        weights = {source.name: source.weight for source in spec.data.sources}
        self.seconds = np.array([utterance.seconds for utterance in utterances])
        self.weights = np.array([weights.get(utterance.source, 1.0) for utterance in utterances])
        self.keys = utterance_keys([utterance.id for utterance in utterances])
        self.steps_per_epoch = len(self.epoch(0)[0])

    def epoch(self, epoch: int) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.float64]]:
        """The global batches of an epoch, and the speed of each utterance in it."""
        train = self.spec.train
        speeds = speed_factors(train.augment, self.keys, self.spec.seed, epoch)
        seconds = self.seconds / speeds
        return epoch_batches(seconds, self.spec.seed, epoch, train.global_batch, self.weights), speeds

    def from_step(self, first: int, last: int) -> Iterator[Order]:
        """The micro-batches of this rank for the steps first..last-1."""
        for epoch in range(first // self.steps_per_epoch, steps_per_epoch(last, self.steps_per_epoch)):
            batches, speeds = self.epoch(epoch)
            copies = _copies(batches)
            lengths = self.seconds / speeds
            for index, batch in enumerate(batches):
                step = epoch * self.steps_per_epoch + index
                if not first <= step < last:
                    continue
                own = split_batch(lengths[batch], self.world_size, self.cap)[self.rank]
                for number, picked in enumerate(own, start=1):
                    chosen = batch[picked]
                    yield Order(
                        step=step,
                        epoch=epoch,
                        last=number == len(own),
                        utterances=tuple(chosen.tolist()),
                        copies=tuple(copies[index][picked].tolist()),
                        speeds=tuple(speeds[chosen].tolist()),
                        seconds=float(lengths[chosen].sum()),
                        padded=padded_seconds(lengths, chosen),
                    )


class Speech(Dataset[MicroBatch]):
    """Turns an order into a micro-batch: decode, augment, features, collate."""

    def __init__(self, spec: RoundSpec, utterances: Sequence[Utterance], reader: Reader, model: Model) -> None:
        self.spec, self.utterances, self.reader, self.model = spec, utterances, reader, model
        self.keys = utterance_keys([utterance.id for utterance in utterances])

    def __getitem__(self, order: Order) -> MicroBatch:
        examples, skipped = [], []
        try:
            for index, copy, speed in zip(order.utterances, order.copies, order.speeds, strict=True):
                try:
                    examples.append(self._example(index, order.epoch, copy, speed))
                except AudioError:
                    skipped.append(self.utterances[index].id)
            batch = self.model.collate(examples) if examples else None
        except CaspiError as problem:
            return MicroBatch(order, None, tuple(skipped), problem)
        return MicroBatch(order, batch, tuple(skipped))

    def _example(self, index: int, epoch: int, copy: int, speed: float) -> Example:
        utterance, key = self.utterances[index], int(self.keys[index])
        augment, seed = self.spec.train.augment, self.spec.seed
        clip = augmented(self.reader.read(utterance.audio), augment, seed, epoch, key, copy, speed)
        example = self.model.example(clip, utterance.text)
        if augment.specaugment is None:
            return example
        rng = augmented_rng(seed, epoch, key, copy)
        return replace(example, features=mask(example.features, augment.specaugment, rng))


def step_batches(
    speech: Speech, orders: Orders, first: int, last: int, workers: int, ranks: Processes
) -> Iterator[list[MicroBatch]]:
    """The micro-batches of each step first..last-1, ready to run; workers stay ahead."""
    loader = background(speech, _Lazily(orders, first, last), workers, pin=ranks.device.type == "cuda")
    step: list[MicroBatch] = []
    for micro_batch in loader:
        if micro_batch.problem is not None:
            raise micro_batch.problem
        step.append(micro_batch)
        if micro_batch.order.last:
            yield step
            step = []


def background(dataset: Dataset[Any], items: Any, workers: int, pin: bool) -> Iterator[Any]:
    """`dataset[item]` for each item, in order, computed by worker processes that are a few items ahead."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context="fork" if workers else None,  # weights are shared, nothing is pickled
        worker_init_fn=partial(_begin_worker, os.getpid()),
        pin_memory=pin,
        collate_fn=_same,
    )
    iterator = iter(loader)
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise StageFailed(
                f"a data worker died: {str(error).splitlines()[0]}; it may have run out of memory: give the "
                "machine more, or lower `workers` in the cluster file, then run the same command again"
            ) from None


class _Lazily:
    """What the loader iterates over: epochs are planned when they come."""

    def __init__(self, orders: Orders, first: int, last: int) -> None:
        self.orders, self.first, self.last = orders, first, last

    def __iter__(self) -> Iterator[Order]:
        return self.orders.from_step(self.first, self.last)


def _copies(batches: Sequence[npt.NDArray[np.int64]]) -> list[npt.NDArray[np.int64]]:
    """For each place in the batches: how often the same utterance stood in an earlier place."""
    flat = np.concatenate(batches)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    run = np.repeat(begins, np.diff(np.r_[begins, len(flat)]))
    copies = np.empty(len(flat), dtype=np.int64)
    copies[order] = np.arange(len(flat)) - run
    return np.split(copies, np.cumsum([len(batch) for batch in batches])[:-1])


def _begin_worker(trainer: int, _number: int) -> None:
    """A data worker is forked, so it shares the round's lock: it must not outlive a killed training process."""
    die_with_parent(trainer)
    torch.set_num_threads(1)
    # Ctrl-C and SIGTERM reach the whole process group; the training process decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _same(item: Any) -> Any:
    return item
