"""What a server counts, in the words of Prometheus. Each server has a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caspi.serving.queue import BatchDone

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Requests, latency, audio, batches. Throughput over a window is rate(audio) / rate(work)."""

    def __init__(self, queue_depth: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("caspi_requests", "Transcription requests.", ["status"], registry=registry)
        self.running = Gauge("caspi_requests_running", "Requests without an answer yet.", registry=registry)
        self._latency = Histogram(
            "caspi_request_seconds",
            "From a request's headers to the end of its answer.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=registry,
        )
        self._audio = Counter("caspi_audio_seconds", "Audio transcribed.", registry=registry)
        self._work = Counter("caspi_work_seconds", "Time spent in the model.", registry=registry)
        self._batch = Histogram(
            "caspi_batch_clips", "Clips in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self._rtfx = Gauge("caspi_rtfx", "Seconds of audio for a second of work, in the last batch.", registry=registry)
        self.ready = Gauge("caspi_ready", "1 when the model has loaded and transcribed a clip.", registry=registry)
        Gauge("caspi_queue_depth", "Clips that wait.", registry=registry).set_function(queue_depth)

    def request(self, status: int, seconds: float) -> None:
        self._requests.labels(str(status)).inc()
        self._latency.observe(seconds)

    def batch(self, done: BatchDone) -> None:
        self._audio.inc(done.audio_seconds)
        self._work.inc(done.seconds)
        self._batch.observe(done.clips)
        self._rtfx.set(done.audio_seconds / done.seconds if done.seconds else 0.0)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class Measured:
    """Counts every request to one path, whoever answers it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, path: str) -> None:
        self.app, self.metrics, self.path = app, metrics, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        status = 499  # the client went away before an answer

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self.metrics.running.track_inprogress():
                await self.app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.request(status, time.monotonic() - begun)
