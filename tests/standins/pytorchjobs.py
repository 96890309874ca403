"""A stand-in for the API server: PyTorchJobs that can be read and patched, with faults on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.standins.answering import answering

JOBS = "/apis/kubeflow.org/v1/namespaces/asr/pytorchjobs/"


@dataclass
class Jobs:
    """What the stand-in has and what it saw."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[int | str] = field(default_factory=list)
    """What the next requests get: a status, `cut` for a connection that ends without an answer, or `lost` for an
    answer that is lost after the work was done."""
    token: str = "right"
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(state: Jobs) -> Iterator[Jobs]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_PATCH(self) -> None:
            kind = self.headers.get("Content-Type")
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(body if kind == "application/merge-patch+json" else {"unexpected": kind})

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, patch: dict[str, Any] | None) -> None:
            state.requests.append(f"{self.command} {self.path}")
            fault = state.faults.pop(0) if state.faults else None
            if isinstance(fault, int):
                return self._send(fault, {"message": "planted"})
            name = self.path.partition("?")[0].removeprefix(JOBS)
            if self.headers.get("Authorization") != f"Bearer {state.token}":
                return self._send(403, {"message": "forbidden"})
            if fault != "cut" and patch is not None and name in state.jobs:
                merge(state.jobs[name], patch)
            if fault is not None:
                self.close_connection = True
                self.connection.close()
                return None
            if name not in state.jobs:
                return self._send(404, {"message": "not found"})
            return self._send(200, state.jobs[name])

        def _send(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with answering(Handler) as state.url:
        yield state


def merge(value: dict[str, Any], patch: dict[str, Any]) -> None:
    """RFC 7386, in place."""
    for key, new in patch.items():
        if isinstance(new, dict):
            if not isinstance(value.get(key), dict):
                value[key] = {}
            merge(value[key], new)
        else:
            value[key] = new
