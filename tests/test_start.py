"""Starting a suspended training job: the real kubernetes client against a stand-in of the API server."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import kubernetes
import pytest

import caspi.execution.start as starting
from caspi.errors import CaspiError, Unanswered, UserError
from caspi.execution.start import start
from tests.command import caspi
from tests.standins.pytorchjobs import Jobs, serve

DIGEST = "ab" * 32
SUSPENDED = {
    "metadata": {"name": "r1", "labels": {"a": "b"}, "annotations": {"caspi.dev/spec-digest": DIGEST}},
    "spec": {"runPolicy": {"suspend": True, "cleanPodPolicy": "Running"}, "pytorchReplicaSpecs": {"Worker": {}}},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setattr(starting, "PATIENCE", (0.01,) * 4)
    with serve(Jobs({"r1": copy.deepcopy(SUSPENDED)})) as state:
        yield state


def client(server: Jobs, token: str = "right") -> Any:
    settings = kubernetes.client.Configuration()
    settings.host, settings.retries = server.url, False
    settings.api_key["authorization"] = f"Bearer {token}"
    return kubernetes.client.ApiClient(settings)


def started(server: Jobs, queue: str | None = None, digest: str = DIGEST, token: str = "right") -> str:
    return start("asr", "r1", digest, queue, client(server, token))


def test_a_suspended_job_starts_and_starting_it_again_changes_nothing(server: Jobs) -> None:
    assert started(server) == "pytorchjob asr/r1 is now started"
    wanted = copy.deepcopy(SUSPENDED)
    wanted["spec"]["runPolicy"]["suspend"] = False
    assert server.jobs["r1"] == wanted
    assert started(server) == "pytorchjob asr/r1 is started already"
    assert [request.split()[0] for request in server.requests] == ["GET", "PATCH", "GET"]


def test_a_queue_gets_the_job_suspended(server: Jobs) -> None:
    assert started(server, "gpus") == "pytorchjob asr/r1 is now in queue gpus"
    assert server.jobs["r1"]["spec"] == SUSPENDED["spec"], "the queue starts it"
    assert server.jobs["r1"]["metadata"]["labels"] == {"a": "b", "kueue.x-k8s.io/queue-name": "gpus"}
    assert started(server, "gpus") == "pytorchjob asr/r1 is in queue gpus already"


@pytest.mark.parametrize("annotations", [{"caspi.dev/spec-digest": "cd" * 32}, {}, None])
def test_another_rounds_job_is_left_alone(server: Jobs, annotations: dict[str, str] | None) -> None:
    server.jobs["r1"]["metadata"]["annotations"] = annotations
    before = copy.deepcopy(server.jobs)
    with pytest.raises(UserError, match=r"asr/r1: it .*, and abababababab was prepared here; the job is left alone"):
        started(server)
    assert server.jobs == before


@pytest.mark.parametrize("faults", [[503], [429, 500], ["cut"], [409], [504], ["lost"]])
@pytest.mark.parametrize("at", ["get", "patch"])
def test_what_may_pass_is_tried_again(
    server: Jobs, faults: list[int | str], at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = starting.check_same_round

    def then_fails(*arguments: Any) -> None:
        reading(*arguments)
        server.faults = list(faults)

    if at == "get":
        server.faults = list(faults)
    else:
        monkeypatch.setattr(starting, "check_same_round", then_fails)
    assert started(server) == "pytorchjob asr/r1 is now started"
    assert server.jobs["r1"]["spec"]["runPolicy"]["suspend"] is False
    assert len(server.requests) == 2 + len(faults)


def test_helm_makes_the_job_after_the_pod_that_starts_it(server: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PATIENCE", (0.2,) * 10)
    job = server.jobs.pop("r1")
    threading.Timer(0.5, server.jobs.update, [{"r1": job}]).start()
    assert started(server) == "pytorchjob asr/r1 is now started"


@pytest.mark.parametrize(
    ("faults", "token", "kind", "says"),
    [
        ([404] * 9, "right", UserError, "there is none; was the release uninstalled"),
        ([], "wrong", UserError, "service account may not get or patch it (403)"),
        ([422], "right", UserError, "refuses the change (422"),
        ([503] * 9, "right", Unanswered, "asr/r1: 503"),
        (["cut"] * 9, "right", Unanswered, "the API server is out of reach ("),
    ],
)
def test_refusals_are_one_line(
    server: Jobs, faults: list[int | str], token: str, kind: type[CaspiError], says: str
) -> None:
    server.faults = faults
    with pytest.raises(kind) as caught:
        started(server, token=token)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_outside_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match="works in a pod with a service account's token"):
        start("asr", "r1", DIGEST, None)


@pytest.mark.parametrize("text", ["r1", "/r1", "asr/"])
def test_what_to_start_is_checked_before_the_work(text: str) -> None:
    given = ["--round=none.yaml", "--cluster=none.yaml", "--runs=none", f"--digest={DIGEST}", f"--start={text}"]
    done = caspi("prepare", *given)
    assert (done.code, done.err) == (2, f"--start {text}: write NAMESPACE/NAME\n")
