"""The usual way to fine-tune Qwen3-ASR, written anew from what its script is known to do: the Hugging Face Trainer on
batches of a fixed size in random order, a collator that decodes each clip and computes its mel spectrogram twice (for
the prompt alone, to learn its length, and for prompt and text), padding on the left, an audio encoder that is called
clip by clip, and logits for every position of the batch.

Its label mask is wrong for padded rows, as upstream; that changes what is learnt, and nothing about the time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import librosa
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from caspi.families.labels import IGNORED
from caspi.families.qwen3_backend import backend

RATE = 16_000


@dataclass
class Timed:
    """When optimizer steps ended, what the training process had computed by then, and how long each had waited."""

    ends: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


def run(
    thinker: Any,
    base: Path,
    clips: Sequence[tuple[Path, str]],
    epochs: int,
    batch: int,
    accumulate: int,
    workers: int,
    cuda: bool,
    folder: Path,
) -> Timed:
    """Train all of `thinker` on (audio file, text) pairs."""
    timed = Timed()
    trainer = _Trainer(
        model=_Outer(thinker),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            num_train_epochs=epochs,
            learning_rate=2e-5,
            lr_scheduler_type="linear",
            warmup_ratio=0.02,
            bf16=cuda,
            use_cpu=not cuda,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=workers > 0,
            dataloader_prefetch_factor=2 if workers else None,
            dataloader_pin_memory=cuda,
            # Both sides recompute on a GPU: without it the usual way needs far more memory still.
            gradient_checkpointing=cuda,
            gradient_checkpointing_kwargs={"use_reentrant": False} if cuda else None,
            remove_unused_columns=False,
            save_strategy="no",
            report_to=[],
            logging_steps=10,
            disable_tqdm=True,
        ),
        train_dataset=[{"audio": str(path), "text": text} for path, text in clips],
        data_collator=Collator(base),
        callbacks=[_Ends(timed)],
    )
    trainer.timed = timed
    trainer.train()
    return timed


class Collator:
    """Rows of paths and texts -> padded tensors."""

    def __init__(self, base: Path) -> None:
        self.processor = backend().Qwen3ASRProcessor.from_pretrained(base, fix_mistral_regex=True)
        turns = [{"role": "system", "content": ""}, {"role": "user", "content": [{"type": "audio", "audio": ""}]}]
        self.prompt = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def __call__(self, rows: Sequence[dict[str, str]]) -> dict[str, torch.Tensor]:
        audio = [librosa.load(row["audio"], sr=RATE, mono=True)[0] for row in rows]
        end = self.processor.tokenizer.eos_token
        texts = [f"{self.prompt}language Hebrew<asr_text>{row['text']}{end}" for row in rows]
        options = {"return_tensors": "pt", "padding": True, "truncation": False}
        inputs = self.processor(text=texts, audio=audio, **options)
        prompts = self.processor(text=[self.prompt] * len(rows), audio=audio, **options)
        labels = inputs["input_ids"].clone()
        for row, length in enumerate(prompts["attention_mask"].sum(1).tolist()):
            labels[row, :length] = IGNORED
        labels[labels == self.processor.tokenizer.pad_token_id] = IGNORED
        return {**inputs, "labels": labels}


class _Outer(torch.nn.Module):
    """What the Trainer calls: the package's own thinker, with its own loss over all positions."""

    def __init__(self, thinker: Any) -> None:
        super().__init__()
        self.thinker = thinker
        self.gradient_checkpointing_enable = thinker.gradient_checkpointing_enable
        self.config = thinker.config

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.thinker(**inputs)


class _Trainer(Trainer):
    timed: Timed

    def get_batch_samples(self, *given: Any, **named: Any) -> Any:
        began = time.monotonic()
        samples = super().get_batch_samples(*given, **named)
        self.timed.waits.append(time.monotonic() - began)
        return samples


class _Ends(TrainerCallback):
    def __init__(self, timed: Timed) -> None:
        self.timed = timed

    def on_step_end(self, args: Any, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available() and not args.use_cpu:
            torch.cuda.synchronize()
        self.timed.ends.append(time.monotonic())
        self.timed.cpu.append(time.process_time())
