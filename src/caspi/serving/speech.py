"""A model that serves: its thread, its queue and its numbers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from fastapi import Request

from caspi.errors import CaspiError, UserError
from caspi.families.base import SAMPLE_RATE, Clip, Hypothesis, Model
from caspi.files import folder_digest
from caspi.serving.metrics import Metrics
from caspi.serving.queue import BatchLimits, MicroBatches, Overloaded
from caspi.serving.refusals import Refused, overloaded

DECODERS = 2  # audio is decoded beside the model, not instead of it


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may be."""

    bytes: int = 25 * 2**20
    """The limit of OpenAI's API."""
    seconds: tuple[float, float] = (0.1, 300.0)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to be served, and the language that it was trained for."""

    model: Model
    language: str | None = None
    context: str = ""
    digest: str | None = None
    """sha256 of the model folder as it was when it was loaded."""


class Speech:
    """The model, its thread and its numbers: what the endpoints share."""

    def __init__(self, name: str, load: Callable[[], Loaded], limits: Limits, batches: BatchLimits) -> None:
        self.name = name
        self.limits = limits
        self.created = int(time.time())
        self.loaded: Loaded | None = None
        """Set when the model has really transcribed a clip."""
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.decoders = anyio.CapacityLimiter(DECODERS)
        self.batches = MicroBatches(batches, lambda done: self.metrics.batch(done))
        self.metrics = Metrics(lambda: self.batches.depth)
        self._load = load
        # a daemon: SIGTERM while the model loads ends the process at once
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits; blocks. A model that still loads is left."""
        self.batches.close()
        if self.loaded:
            self._thread.join()

    async def transcribe(self, clip: Clip, client: Request) -> Hypothesis:
        """The hypothesis of one clip; Refused when too much waits, the client goes or the model fails on it."""
        try:
            answer = asyncio.wrap_future(self.batches.submit(clip))
        except Overloaded as error:
            raise overloaded(error.retry_after) from None
        gone = asyncio.create_task(_gone(client))
        either: list[asyncio.Future[Any]] = [answer, gone]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()  # a client that timed out sends it again: don't do it twice
            raise Refused(499, "the client went away")
        gone.cancel()
        try:
            return answer.result()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise Refused(500, f"the model failed on this clip ({reason})", code="transcription_failed") from error

    def _work(self) -> None:
        try:
            loaded = self._load()
            check(loaded.model)
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        self.loaded = loaded
        self.metrics.ready.set(1)
        self.batches.run(loaded.model.transcribe)


def load_model(folder: Path) -> Loaded:
    """Load a checkpoint, or a base model, on the GPU when there is one."""
    import torch

    from caspi.families import card_of, detect
    from caspi.spec.models import CtcModel, Qwen3AsrModel

    family, card = detect(folder), card_of(folder)
    if card and card.family != family.name:
        raise UserError(f"{folder}: the weights are of the family {family.name}, and caspi.json says {card.family}")
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)  # several servers or a training beside it would only fight for the cores
    # a base model has no round: its language is only a word in training targets, which nobody makes here
    base = str(folder.resolve())
    bare = CtcModel(family="ctc", base=base) if family.name == "ctc" else None
    spec = card or bare or Qwen3AsrModel(family="qwen3-asr", base=base, language="English")
    model = family.load(folder, spec, torch.device("cuda" if on_gpu else "cpu"))
    context = spec.context if isinstance(spec, Qwen3AsrModel) else ""
    return Loaded(model, card.language if card else None, context, folder_digest(folder))


def check(model: Model) -> None:
    """Transcribe a short clip of faint noise: what this proves is that the whole path runs."""
    clip = np.random.default_rng(0).normal(0, 1e-3, SAMPLE_RATE).astype(np.float32)
    heard = model.transcribe([clip])
    if len(heard) != 1 or not isinstance(heard[0].text, str):
        raise CaspiError("the model does not transcribe: one clip in, no text out")


async def _gone(client: Request) -> None:
    """Returns when the client closes the connection. The body has been read by then."""
    while (await client.receive())["type"] != "http.disconnect":
        pass
