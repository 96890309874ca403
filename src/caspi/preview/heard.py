"""Utterances as one epoch of training gets them, by the very code that trains: same seed, same draws."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from caspi.corpus.audio import AudioReader
from caspi.corpus.manifest import Utterance, read_manifest
from caspi.corpus.roots import roots
from caspi.errors import UserError
from caspi.families import family_of
from caspi.families.base import Batch, Clip, Example, Model
from caspi.families.counts import parameter_counts
from caspi.families.mel import LogMel
from caspi.files import read_json
from caspi.records.round_dir import RoundDir
from caspi.spec.models import CtcModel
from caspi.training.augment import change_speed
from caspi.training.data import Order, Orders, Reader, Speech

Features = npt.NDArray[np.float32]
Ears = Callable[[Clip], Features]
"""What a family's network reads of a clip: [bins, frames], or [1, samples] where it reads the waveform."""

MEL_BINS = 128  # of every released Qwen3-ASR
UNSPLIT = 1e9  # padded seconds: how a batch is split does not change what is heard


@dataclass(frozen=True, slots=True)
class Heard:
    """One utterance before and after."""

    utterance: Utterance
    speed: float
    before: Clip
    after: Clip
    """With its speed and its noise. Masks can only be heard where the network reads the waveform."""
    snr: float | None
    """Of speech over added noise in dB, as measured; None without noise."""
    plain: Features
    """Of the clip as it is."""
    features: Features
    """What training reads, masks included."""
    masked: npt.NDArray[np.bool_]
    """Where they are hidden, in the shape of `features`."""


def hear(round_dir: RoundDir, count: int, epoch: int) -> list[Heard]:
    """Some utterances of an epoch (counted from 0), the same ones for each epoch that takes them.

    UserError when the round is not exported, or has no such epoch.
    """
    round_dir.succeeded("export")
    spec = round_dir.spec
    epochs = sum(phase.epochs for phase in spec.train.phases)
    if not 0 <= epoch < epochs:
        raise UserError(f"--epoch {epoch}: the round has epochs 0 to {epochs - 1}", where=spec.round)
    utterances = _trained_on(round_dir)
    orders = Orders(spec, utterances, rank=0, world_size=1, max_padded_seconds=UNSPLIT)
    single = _singles(orders, epoch)
    chosen = [index for index in np.argsort(orders.keys, kind="stable").tolist() if index in single]
    export = round_dir.folder("export")
    names = {utterances[index].source for index in chosen[: 4 * count]}
    reader = AudioReader(roots(spec, round_dir.data_root, export, only=names))
    ears = ears_of(round_dir, [utterance.text for utterance in utterances])
    found = (heard(spec, utterances, reader, ears, single[index]) for index in chosen[: 4 * count])
    return [one for one, _ in zip((one for one in found if one), range(count), strict=False)]


def heard(spec: Any, utterances: Sequence[Utterance], reader: Reader, ears: Ears, order: Order) -> Heard | None:
    """The one utterance of an order; None when its audio can't be read, as training skips it."""
    listener = _Listener(ears)
    if Speech(spec, utterances, reader, cast(Model, listener))[order].skipped:
        return None
    utterance, speed = utterances[order.utterances[0]], order.speeds[0]
    before = reader.read(utterance.audio)
    features, read = listener.taken, ears(listener.clip)
    after = listener.clip
    if len(features) == 1:  # the waveform itself, in the scale of the extractor: silence is a mask
        after = np.where(features[0, : len(after)] == read[0, : len(after)], after, np.float32(0))
    return Heard(
        utterance=utterance,
        speed=speed,
        before=before,
        after=after,
        snr=_snr(change_speed(before, speed), listener.clip),
        plain=ears(before),
        features=features,
        masked=features != read,
    )


def ears_of(round_dir: RoundDir, texts: Sequence[str]) -> Ears:
    """The features of the round's base. Its weights are not loaded; those of a CTC base on the hub are downloaded."""
    model = round_dir.spec.model
    if not isinstance(model, CtcModel):
        counts: Any = parameter_counts(model)
        return LogMel(counts.dimensions.mel_bins if counts else MEL_BINS)
    from caspi.families.ctc_features import load_features

    def of(folder: Path) -> Ears:
        return load_features(folder, str(read_json(folder / "config.json")["model_type"]))

    parent = round_dir.parent()
    if parent is not None:
        return of(parent.model)
    with tempfile.TemporaryDirectory() as scratch:
        return of(family_of(model).prepare(model, texts, round_dir.spec.seed, Path(scratch)))


class _Listener:
    """Stands where the model does: it keeps what it is given to learn from."""

    def __init__(self, ears: Ears) -> None:
        self.ears = ears
        self.clip: Clip = np.empty(0, dtype=np.float32)
        self.taken: Features = np.empty((0, 0), dtype=np.float32)

    def example(self, clip: Clip, _text: str) -> Example:
        self.clip = clip
        return Example(self.ears(clip), ())

    def collate(self, examples: Sequence[Example]) -> Batch:
        self.taken = examples[0].features
        return Batch({}, 0)


def _trained_on(round_dir: RoundDir) -> list[Utterance]:
    """The training manifest without what the audit leaves out, where it has run."""
    left_out = round_dir.folder("audit") / "left_out.json"
    out = set(read_json(left_out)) if left_out.exists() else set()
    return [one for one in read_manifest(round_dir.folder("export") / "train.jsonl") if one.id not in out]


def _singles(orders: Orders, epoch: int) -> dict[int, Order]:
    """For each utterance of an epoch an order of its own: the first time that it is taken."""
    found: dict[int, tuple[Order, int]] = {}
    first = epoch * orders.steps_per_epoch
    for order in orders.from_step(first, first + orders.steps_per_epoch):
        for place, index in enumerate(order.utterances):
            if order.copies[place] == 0:
                found[index] = (order, place)
    return {
        index: replace(order, utterances=(index,), copies=(order.copies[place],), speeds=(order.speeds[place],))
        for index, (order, place) in found.items()
    }


def _snr(speech: Clip, noisy: Clip) -> float | None:
    noise = float(np.mean(np.square(noisy - speech, dtype=np.float64)))
    power = float(np.mean(np.square(speech, dtype=np.float64)))
    return 10 * float(np.log10(power / noise)) if noise > 0 and power > 0 else None
