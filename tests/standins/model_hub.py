"""A stand-in for the Hugging Face hub that takes models: repositories with commits over HTTP, with faults on demand.

Speaks the part of the protocol that `huggingface_hub` uses to make a repository, upload files (small ones in the
commit, large ones by LFS) and download them again. Every request is written down.
"""

from __future__ import annotations

import base64
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

LARGE = (".safetensors", ".bin")


@dataclass
class Commit:
    """A state of a branch."""

    summary: str
    files: dict[str, bytes]

    @property
    def sha(self) -> str:
        content = {name: hashlib.sha1(data).hexdigest() for name, data in sorted(self.files.items())}
        return hashlib.sha1(json.dumps([self.summary, content]).encode()).hexdigest()


@dataclass
class ModelHub:
    """What the stand-in has and what it saw."""

    token: str = "hf_right"
    readers: tuple[str, ...] = ()
    """Tokens that may read but not write."""
    owners: tuple[str, ...] = ("owner",)
    repositories: dict[str, dict[str, list[Commit]]] = field(default_factory=dict)
    """Name -> branch -> commits."""
    private: dict[str, bool] = field(default_factory=dict)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    """Pattern of `METHOD path` -> what the next requests get: a status; `cut` for a connection that ends without an
    answer; `lost` for an answer that is lost after the work was done."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256."""
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def commits(self, repository: str, branch: str = "main") -> list[Commit]:
        return self.repositories[repository][branch]

    def asked(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.requests)


@contextmanager
def serve(hub: ModelHub) -> Iterator[ModelHub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._take()

        def do_HEAD(self) -> None:
            self._take()

        def do_POST(self) -> None:
            self._take()

        def do_PUT(self) -> None:
            self._take()

        def log_message(self, *_: object) -> None:
            pass

        def _take(self) -> None:
            body = self._body()
            path = unquote(urlsplit(self.path).path)
            line = f"{self.command} {path}"
            hub.requests.append(line)
            for pattern, faults in hub.faults.items():
                if faults and re.search(pattern, line):
                    fault = faults.pop(0)
                    if fault == "lost":
                        self._answer(path, body, silent=True)
                    if isinstance(fault, str):
                        self.close_connection = True
                        self.connection.close()
                        return None
                    return self._send(fault, b"<html>not now</html>")
            return self._answer(path, body)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(self, path: str, body: bytes, silent: bool = False) -> None:
            status, value, headers = self._work(path, body)
            if not silent:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self._send(status, data, headers)

        def _work(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
            if self.command == "PUT":  # storage: no token, the address is the right
                hub.objects[path.rsplit("/", 1)[1]] = body
                return 200, b"", {"ETag": '"stored"'}
            sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if sent not in (hub.token, *hub.readers):
                return 401, {"error": "Invalid username or password."}, {}
            if path == "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}, {}
            values = json.loads(body) if body and not path.startswith("/api/models") else {}
            if path == "/api/repos/create":
                return self._create(values, sent)
            if match := re.fullmatch(r"/([\w-]+/[\w-]+)\.git/info/lfs/objects/batch", path):
                return 200, {"transfer": "basic", "objects": [_stored(one) for one in values["objects"]]}, {}
            if match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(?:/(\w+)/(.+))?", path):
                return self._repository(match[1], match[2] or "revision", match[3] or "main", body, sent)
            if match := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/(\w+)/(.+)", path):
                return self._file(match[1], match[3])
            return 404, {"error": "Not Found"}, {}

        def _create(self, values: dict[str, Any], sent: str) -> tuple[int, Any, dict[str, str]]:
            owner, name = values.get("organization") or "owner", values["name"]
            if owner not in hub.owners or sent in hub.readers:
                return 403, {"error": f"You don't have the rights to create a model under {owner}"}, {}
            repository = f"{owner}/{name}"
            address = {"url": f"{hub.url}/{repository}"}
            if repository in hub.repositories:
                return 409, {**address, "error": "You already created this model repo"}, {}
            hub.repositories[repository] = {"main": [Commit("initial commit", {".gitattributes": b"*.bin lfs\n"})]}
            hub.private[repository] = bool(values.get("private"))
            return 200, address, {}

        def _repository(
            self, repository: str, verb: str, branch: str, body: bytes, sent: str
        ) -> tuple[int, Any, dict[str, str]]:
            branches = hub.repositories.get(repository)
            if branches is None:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            if verb == "branch":
                if branch in branches:
                    return 409, {"error": "Reference already exists"}, {}
                branches[branch] = [branches["main"][-1]]
                return 200, {}, {}
            history = branches.get(branch) or next(
                ([c] for commits in branches.values() for c in commits if c.sha == branch), None
            )
            if history is None:
                return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
            head = history[-1]
            if verb == "revision":
                files = [{"rfilename": name, "size": len(data)} for name, data in sorted(head.files.items())]
                return (
                    200,
                    {"id": repository, "sha": head.sha, "private": hub.private[repository], "siblings": files},
                    {},
                )
            if verb == "tree":
                return (
                    200,
                    [{"type": "file", "path": n, "size": len(d), "oid": _oid(n, d)} for n, d in head.files.items()],
                    {},
                )
            if sent in hub.readers:
                return 403, {"error": "Forbidden"}, {}
            if verb == "preupload":
                return 200, {"files": [_mode(one["path"], head) for one in json.loads(body)["files"]]}, {}
            return self._commit(repository, history, body)

        def _commit(self, repository: str, history: list[Commit], body: bytes) -> tuple[int, Any, dict[str, str]]:
            files, summary = dict(history[-1].files), ""
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    summary = value["summary"]
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            history.append(Commit(summary, files))
            sha = history[-1].sha
            return 200, {"commitUrl": f"{hub.url}/{repository}/commit/{sha}", "commitOid": sha}, {}

        def _file(self, repository: str, name: str) -> tuple[int, Any, dict[str, str]]:
            head = hub.commits(repository)[-1]
            if name not in head.files:
                return 404, b"", {"X-Error-Code": "EntryNotFound"}
            return 200, head.files[name], {"ETag": f'"{_oid(name, head.files[name])}"', "X-Repo-Commit": head.sha}

        def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def _stored(one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in hub.objects:
            return {**one}
        return {**one, "actions": {"upload": {"href": f"{hub.url}/storage/{one['oid']}"}}}

    with answering(Handler) as hub.url:
        yield hub


def _mode(name: str, head: Commit) -> dict[str, Any]:
    oid = _oid(name, head.files[name]) if name in head.files else None
    return {"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular", "shouldIgnore": False, "oid": oid}


def _oid(name: str, data: bytes) -> str:
    """What the hub calls a file: sha256 of a large one, git's blob sha1 of a small one."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
