"""A stand-in for the Hugging Face hub: one dataset repository over HTTP, with faults on demand.

Speaks the part of the protocol that `huggingface_hub` uses to list and download a dataset. It can cut a connection in
the middle of a file, answer 503, and ask for a token, and it writes down every request.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.standins.answering import answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the stand-in has and what it saw."""

    files: dict[str, bytes]
    repository: str = "owner/crowd"
    token: str | None = None
    """Asked for, when set."""
    cut_once: dict[str, int] = field(default_factory=dict)
    """File -> after how many bytes the connection ends, the first time."""
    failing: int = 0
    """How many requests are answered with 503 before the others are served."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range)."""
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def ranges(self, name: str) -> list[str | None]:
        """The Range of each GET of a file."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            hub.tokens.add(self.headers.get("Authorization"))
            if hub.failing > 0:
                hub.failing -= 1
                return self._send(503, b"busy", body)
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._send(401, b"no", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
            if match := re.fullmatch(rf"/api/datasets/{hub.repository}/revision/(.+)", path):
                return self._revision(match[1], body)
            if match := re.fullmatch(rf"/api/datasets/{hub.repository}/tree/{COMMIT}", path):
                files = [
                    {"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in sorted(hub.files.items())
                ]
                return self._json(files, body)
            if match := re.fullmatch(rf"/datasets/{hub.repository}/resolve/{COMMIT}/(.+)", path):
                return self._file(match[1], body)
            return self._send(404, b"", body, {"X-Error-Code": "RepoNotFound"})

        def _revision(self, revision: str, body: bool) -> None:
            if revision not in (COMMIT, "main"):
                return self._send(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
            return self._json(
                {"id": hub.repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}, body
            )

        def _file(self, name: str, body: bool) -> None:
            data = hub.files.get(name)
            if data is None:
                return self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(span[1]) if span else 0
            about = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if span:
                about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = hub.cut_once.pop(name, None) if body else None
            return self._send(206 if span else 200, data[start:], body, about, cut)

        def _json(self, value: Any, body: bool) -> None:
            self._send(200, json.dumps(value).encode(), body, {"Content-Type": "application/json"})

        def _send(
            self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data if cut is None else data[:cut])
            if cut is not None:
                self.close_connection = True

    with answering(Handler) as hub.url:
        yield hub


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
