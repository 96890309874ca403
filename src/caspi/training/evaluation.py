"""Scoring on dev while training: loss, WER and CER over all ranks, without augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from caspi.corpus.audio import AudioError
from caspi.corpus.manifest import Utterance
from caspi.families.base import Batch, Clip, Model
from caspi.records.results import DevScore
from caspi.scoring.error_counts import count_errors
from caspi.scoring.profiles import apply
from caspi.spec import RoundSpec
from caspi.training.batches import split_batch
from caspi.training.data import Reader, background
from caspi.training.distributed import Processes


@dataclass(frozen=True, slots=True)
class DevBatch:
    """A micro-batch to score; `batch` is None when none of its audio could be decoded."""

    batch: Batch | None
    clips: list[Clip]
    references: list[str]


class DevSpeech(Dataset[DevBatch]):
    """Turns indices of dev utterances into a batch."""

    def __init__(self, utterances: Sequence[Utterance], reader: Reader, model: Model) -> None:
        self.utterances, self.reader, self.model = utterances, reader, model

    def __getitem__(self, indices: Sequence[int]) -> DevBatch:
        clips, texts = [], []
        for index in indices:
            try:
                clips.append(self.reader.read(self.utterances[index].audio))
            except AudioError:
                continue
            texts.append(self.utterances[index].text)
        examples = [self.model.example(clip, text) for clip, text in zip(clips, texts, strict=True)]
        return DevBatch(self.model.collate(examples) if examples else None, clips, texts)


class Evaluation:
    """The dev utterances of a round, chosen once by its seed."""

    def __init__(
        self,
        spec: RoundSpec,
        utterances: Sequence[Utterance],
        reader: Reader,
        processes: Processes,
        max_padded_seconds: float,
        workers: int,
    ) -> None:
        count = min(spec.train.evaluate.utterances, len(utterances))
        chosen = np.random.default_rng([spec.seed, 3]).permutation(len(utterances))[:count]
        self.spec, self.processes, self.workers = spec, processes, workers
        self.reader = reader
        self.utterances = [utterances[index] for index in sorted(chosen.tolist())]
        seconds = np.array([utterance.seconds for utterance in self.utterances])
        self.batches = split_batch(seconds, processes.world_size, max_padded_seconds)[processes.rank]

    def score(self, model: Model, step: int, epoch: float) -> DevScore:
        """The same score on every rank."""
        profile = self.spec.benchmark.profiles[0]
        device = self.processes.device
        loss, tokens = 0.0, 0
        references: list[str] = []
        hypotheses: list[str] = []
        model.network.eval()
        own = [batch.tolist() for batch in self.batches if len(batch)]
        with torch.inference_mode():
            for dev in background(DevSpeech(self.utterances, self.reader, model), own, self.workers, pin=False):
                if dev.batch is None:
                    continue
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.spec.train.precision == "bf16"):
                    loss += float(model.network(**dev.batch.to(device).tensors))
                    heard = model.transcribe(dev.clips)
                tokens += dev.batch.tokens
                references += [apply(profile, text) for text in dev.references]
                hypotheses += [apply(profile, hypothesis.text) for hypothesis in heard]
        counts = count_errors(references, hypotheses)
        loss, tokens_all, *sums = self.processes.sum(
            loss,
            tokens,
            float(counts.words.total.sum()),
            float(counts.words.length.sum()),
            float(counts.characters.total.sum()),
            float(counts.characters.length.sum()),
        )
        word_errors, words, char_errors, chars = sums
        return DevScore(
            step=step,
            epoch=round(epoch, 4),
            wer=round(word_errors / max(1.0, words), 6),
            cer=round(char_errors / max(1.0, chars), 6),
            loss=round(loss / max(1.0, tokens_all), 6),
        )
