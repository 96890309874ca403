"""A stand-in for the API server of Kubernetes: any objects, read, listed by labels, patched and deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from tests.standins.answering import answering
from tests.standins.pytorchjobs import merge


@dataclass
class Objects:
    """Path -> object."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def write_kubeconfig(self, path: Path) -> None:
        values = {
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "asr"}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "x"}}],
        }
        path.write_text(yaml.safe_dump(values), encoding="utf-8")

    def listed(self, path: str, selector: str) -> list[dict[str, Any]]:
        """Equality of labels only; `in` and existence select all."""
        wanted = dict(one.split("=") for one in selector.split(",") if "=" in one and " " not in one)
        return [
            one
            for name, one in self.objects.items()
            if name.rpartition("/")[0] == path and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]


@contextmanager
def serve_objects(state: Objects) -> Iterator[Objects]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append(f"{self.command} {url.path}")
            there = state.objects.get(url.path)
            if self.command == "GET" and there is None and url.path.count("/") < 7 + ("apis" not in url.path):
                selector = parse_qs(url.query).get("labelSelector", [""])[0]
                return self._send(200, {"items": state.listed(url.path, selector), "metadata": {}})
            if there is None:
                return self._send(404, {"message": f"{url.path} not found"})
            if self.command == "DELETE":
                del state.objects[url.path]
            elif self.command == "PATCH":
                merge(there, json.loads(data))
            return self._send(200, there)

        do_PATCH = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with answering(Handler) as state.url:
        yield state
