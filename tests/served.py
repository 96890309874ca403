"""A real server for tests: uvicorn on a free port, with a model that answers by what it is given."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import soundfile
import uvicorn
from fastapi import FastAPI

from caspi.families.base import SAMPLE_RATE, Clip, Hypothesis
from caspi.serving.server import create_app, listen

URL = "/v1/audio/transcriptions"


class Parrot:
    """Says how long each clip is. A clip at full scale is poison. Waits at `gate`."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.stops_at: int | None = None
        """The call before which the gate closes."""

    def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
        if len(self.calls) == self.stops_at:
            self.gate.clear()
        self.entered.set()
        assert self.gate.wait(20)
        self.calls.append(len(clips))
        if any(np.abs(clip).max() > 0.99 for clip in clips):
            raise RuntimeError("poison")
        texts = [f"{len(clip) / SAMPLE_RATE:.1f} שניות" for clip in clips]
        return [Hypothesis(text, f"language Hebrew<asr_text>{text}", "Hebrew") for text in texts]


@contextmanager
def serving(app: FastAPI) -> Iterator[httpx.Client]:
    """The app on a free port; a client for it when it is ready."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
        thread.start()
        try:
            until(lambda: server.started)
            yield client
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def until(true: Callable[[], Any]) -> None:
    patience = time.monotonic() + 20
    while not true():
        assert time.monotonic() < patience
        time.sleep(0.005)


def ready(client: httpx.Client) -> httpx.Client:
    until(lambda: client.get("/health").status_code == 200)
    return client


@contextmanager
def parrot(**options: Any) -> Iterator[tuple[httpx.Client, Parrot]]:
    model = Parrot()
    with serving(create_app(model=model, language="Hebrew", **options)) as client:  # type: ignore[arg-type]
        ready(client)
        model.calls.clear()
        yield client, model


def audio(seconds: float = 1.0, *, rate: int = SAMPLE_RATE, peak: float = 0.5, form: str = "WAV") -> bytes:
    samples = peak * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 220 / rate)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype="FLOAT" if form == "WAV" else None)
    return file.getvalue()
