"""The real Kubernetes client against an API server of a few lines: retries, refusals, logs over broken connections."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from caspi.errors import UserError
from caspi.fleet import api as api_module
from caspi.fleet import logs as logs_module
from caspi.fleet.api import Api, Broken, Changed, Forbidden, NotFound, connect
from caspi.fleet.diagnose import Diagnosis
from caspi.fleet.logs import Line, follow_logs
from caspi.fleet.refusals import OutOfReach
from tests.command import caspi
from tests.standins.answering import answering
from tests.test_fleet_diagnose import RUNNING, condition, job, pod

PODS = "/api/v1/namespaces/{namespace}/pods"


class Server(BaseHTTPRequestHandler):
    """Answers from `script`: for each path what to answer, one after the other, the last again and again;
    or a function that gives it."""

    script: ClassVar[dict[str, Any]] = {}
    asked: ClassVar[list[tuple[str, str, dict[str, list[str]]]]] = []
    sent: ClassVar[list[tuple[str | None, bytes]]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.sent.append(
            (self.headers.get("Content-Type"), self.rfile.read(int(self.headers.get("Content-Length", 0))))
        )
        self.asked.append((self.command, url.path, parse_qs(url.query)))
        answers = self.script.get(url.path, [(404, {"message": f"{url.path} not found"})])
        if callable(answers):
            code, body = 200, answers()
        else:
            code, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self._send(code, json.dumps(body) if isinstance(body, dict) else body)

    do_DELETE = do_PATCH = do_GET

    def _send(self, code: int, body: str) -> None:
        """In chunks, as the API server sends logs; `CUT` breaks the connection off."""
        self.send_response(code)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in body.removesuffix("CUT").splitlines(keepends=True):
            self.wfile.write(f"{len(piece.encode()):x}\r\n{piece}\r\n".encode())
        if body.endswith("CUT"):
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    Server.script, Server.asked, Server.sent = {}, [], []
    monkeypatch.setattr(api_module, "PATIENCE", (0.0, 0.0))
    monkeypatch.setattr(api_module.retried, "__defaults__", ((0.0, 0.0),))
    with answering(Server) as url:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, url)))
        yield connect(None, None)


def kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig"
    values = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "asr"}}],
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "x"}}],
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def says(**paths: Any) -> None:
    Server.script = {path.replace("{namespace}", "asr"): answers for path, answers in paths.items()}


def test_the_namespace_is_that_of_the_context(api: Api) -> None:
    assert (api.namespace, api.where) == ("asr", "namespace asr")


def test_what_may_pass_is_tried_again(api: Api) -> None:
    says(**{PODS: [(503, {}), (429, {}), (200, {"items": [{"metadata": {"name": "x", "managedFields": []}}]})]})
    assert api.items(PODS) == [{"metadata": {"name": "x"}}]
    assert len(Server.asked) == 3


def test_what_lasts_is_an_error_in_the_end(api: Api) -> None:
    says(**{PODS: [(503, {"message": "the server is currently unable to handle the request"})]})
    with pytest.raises(OutOfReach, match="namespace asr: the API server could not do it just now"):
        api.items(PODS)
    assert len(Server.asked) == 3


@pytest.mark.parametrize(
    ("code", "message", "error", "line"),
    [
        (
            403,
            'pods is forbidden: User "dana" cannot list resource "pods" in API group "" in the namespace "asr"',
            Forbidden,
            "dana may not list pods",
        ),
        (401, "Unauthorized", UserError, "does not know these credentials"),
        (404, "not here", NotFound, "not here"),
        (422, "the moon is full", UserError, "namespace asr: the moon is full"),
    ],
)
def test_what_can_not_get_better_is_not_tried_again(
    api: Api, code: int, message: str, error: type[Exception], line: str
) -> None:
    says(**{PODS: [(code, {"message": message})]})
    with pytest.raises(error, match=line):
        api.items(PODS)
    assert len(Server.asked) == 1


def test_a_long_list_is_read_page_by_page(api: Api) -> None:
    first = {"metadata": {"continue": "more"}, "items": [{"metadata": {"name": "a"}}]}
    says(**{PODS: [(200, first), (200, {"metadata": {}, "items": [{"metadata": {"name": "b"}}]})]})
    assert [one["metadata"]["name"] for one in api.items(PODS, labelSelector="x=y")] == ["a", "b"]
    assert [query.get("continue") for _, _, query in Server.asked] == [None, ["more"]]
    assert all(query["labelSelector"] == ["x=y"] for _, _, query in Server.asked)


def test_an_empty_list_may_be_null(api: Api) -> None:
    says(**{PODS: [(200, {"items": None})]})
    assert (api.items(PODS), api.names(PODS)) == ([], [])


def test_only_the_very_object_is_deleted(api: Api) -> None:
    conflict = {"message": "Precondition failed: UID in precondition: a, UID in object meta: b"}
    says(**{f"{PODS}/x": [(409, conflict)], f"{PODS}/y": [(200, {})]})
    assert not api.delete(f"{PODS}/x", "a")
    assert api.delete(f"{PODS}/y", "a")


def test_an_object_is_changed_as_it_was_seen(api: Api) -> None:
    seen = {"metadata": {"name": "x", "uid": "a", "resourceVersion": "7"}}
    other = {"message": 'Operation cannot be fulfilled on pods "x": the object has been modified; please apply your'}
    says(**{f"{PODS}/x": [(200, {}), (409, other)]})
    change = {"metadata": {"labels": {"a": "b"}}}
    api.patch(f"{PODS}/x", seen, change)
    kind, body = Server.sent[-1]
    assert kind == "application/merge-patch+json"
    assert json.loads(body) == {"metadata": {"labels": {"a": "b"}, "uid": "a", "resourceVersion": "7"}}
    with pytest.raises(Changed):
        api.patch(f"{PODS}/x", seen, change)
    assert len(Server.asked) == 2, "the same again can't do better"


def test_in_a_pod_there_are_no_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster file names a context of the one who submits; the step that gets its text is a pod."""
    from kubernetes.config import incluster_config

    token, trusted = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("secret")
    trusted.write_text("certificate")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(trusted))
    monkeypatch.setattr("kubernetes.client.ApiClient", lambda settings: settings)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = connect("mine", "asr")
    assert (found.client.host, found.context, found.namespace) == ("https://10.0.0.1:443", None, "asr")


def test_a_log_that_breaks_off_says_so(api: Api) -> None:
    says(**{f"{PODS}/x/log": [(200, "one\ntwo\nthrCUT")]})
    lines: list[str] = []
    with pytest.raises(Broken):
        for line in api.lines(f"{PODS}/x/log"):
            lines.append(line)
    assert lines == ["one", "two"]


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (None, "no cluster: "),
        ("context: other", "the kubeconfig has no context other"),
        ("nobody", "the cluster does not answer (Connection refused)"),
    ],
)
def test_no_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, line: str) -> None:
    monkeypatch.setattr(api_module.retried, "__defaults__", ((0.0,),))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kubeconfig(tmp_path, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / ("kubeconfig" if config else "none")))
    context = ("--context", "other") if config == "context: other" else ()
    for command in (("status", "--to", "helm"), ("status", "x", "--to", "helm"), ("logs", "x")):
        done = caspi(*command, *context)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert line in done.err


def test_a_log_is_followed_over_a_break_and_a_new_pod(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is lost, none comes twice, and the last thing is the verdict."""
    monkeypatch.setattr(logs_module, "LOOK_EVERY", 0.05)
    running = pod(containerStatuses=[{"name": "pytorch", "state": {"running": {}}}])
    running["metadata"]["labels"]["app.kubernetes.io/component"] = "train"
    ended = {
        **running["status"],
        "containerStatuses": [{"name": "pytorch", "state": {"terminated": {"exitCode": 203}}}],
    }
    second = {**running, "metadata": {**running["metadata"], "uid": "uid-second"}}
    second_ended = {**second, "status": ended}
    at = "2026-11-21T15:00:0"
    logs = [
        f"{at}1.1Z a\n{at}1.2Z b\n",  # what there is
        f"{at}1.1Z a\n{at}1.2Z b\n{at}1.3Z c\nCUT",  # followed, and cut off
        f"{at}1.1Z a\n{at}1.2Z b\n{at}1.3Z c\n{at}2Z d\n",  # to its end
        f"{at}4Z a\n",  # the second pod begins with the same words
    ]
    read: list[str] = []

    def log() -> str:
        read.append(logs[len(read)])
        return read[-1]

    states = {0: running, 1: running, 2: running, 3: {**running, "status": ended}, 4: second_ended}
    looked: list[int] = []

    def pods() -> dict[str, Any]:
        looked.append(len(read))
        replaced = looked.count(3) > 1  # only once it was seen that the first has ended
        return {"items": [second if replaced and len(read) == 3 else states[len(read)]]}

    says(
        **{
            "/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs": lambda: {
                "items": [job(condition("Succeeded")) if len(read) == 4 else RUNNING]
            },
            PODS: pods,
            f"{PODS}/demo-worker-0": lambda: second if looked.count(3) > 1 and len(read) == 3 else states[len(read)],
            f"{PODS}/demo-worker-0/log": log,
        }
    )
    monkeypatch.setattr("caspi.fleet.snapshot._tails", lambda api, pods: {})
    came = list(follow_logs(api, "demo", None, None))
    assert [one.text for one in came if isinstance(one, Line)] == ["a", "b", "c", "d", "a"]
    assert isinstance(came[-1], Diagnosis)
    assert came[-1].phase == "succeeded"
    since = [query.get("sinceTime") for _, path, query in Server.asked if path.endswith("/log")]
    assert since == [None, ["2026-11-21T15:00:01Z"], ["2026-11-21T15:00:01Z"], None]
