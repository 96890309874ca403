"""`--to kfp`: the real command line and the real client of Kubeflow Pipelines over HTTP, against a stand-in that is
generated from the published OpenAPI description. Tests that take `place` also run on a real backend: `make test-kfp`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from caspi.errors import CaspiError, Diverged, GateRefused, OutOfBudget, StageFailed, UserError
from caspi.fleet import api as api_module
from caspi.pipeline import job as job_module
from caspi.pipeline import package, submission
from caspi.pipeline import runs as runs_module
from caspi.pipeline.given import fitting, parameters, read_package
from caspi.pipeline.package import pipeline_file
from caspi.pipeline.state import Run, Task, describe, problem, render
from caspi.pipeline.submission import Wanted, next_step
from caspi.spec import ClusterSpec, RoundSpec, parse
from tests.command import Finished, caspi
from tests.standins.kfp_backend import Backend, misfits, serve
from tests.standins.kube_objects import Objects, serve_objects
from tests.test_bad_input import GOOD

IMAGE = "registry.example.com/asr/caspi-{}@sha256:" + "0" * 64
KUBERNETES: dict[str, Any] = {
    "namespace": "asr",
    "storage": {"claim": "rounds"},
    "images": {"train": IMAGE.format("train"), "launcher": IMAGE.format("launcher")},
}
CLUSTER: dict[str, Any] = {"data_root": "/rounds/data", "kubernetes": KUBERNETES}
NAME_LINE = r"^{name}  sha256:[0-9a-f]{{12}}  {outcome}  (\S+)/#/runs/details/(\S+)$"


@dataclass
class Place:
    """Where rounds are brought to, and a round of a name that nothing there has."""

    folder: Path
    cluster: Path
    name: str

    def submit(self, *more: str, **changes: Any) -> Finished:
        """The round, with `changes`."""
        file = self.folder / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump({**GOOD, "round": self.name, **changes}), encoding="utf-8")
        return caspi("submit", str(file), "--cluster", str(self.cluster), "--to", "kfp", *more)

    def status(self, *more: str) -> Finished:
        return caspi("status", self.name, "--to", "kfp", "--cluster", str(self.cluster), *more)

    def cancel(self, *more: str) -> Finished:
        return caspi("cancel", self.name, "--to", "kfp", "--cluster", str(self.cluster), *more)

    def run(self) -> str:
        """The id of the run that matters."""
        return str(json.loads(self.status("--json").out)[0]["run"])


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled pipeline with the parameters of the real one and no steps: read in no time."""
    real = yaml.load(pipeline_file().read_text(encoding="utf-8").partition("\n---")[0], yaml.CSafeLoader)
    spec = {"pipelineInfo": real["pipelineInfo"], "schemaVersion": real["schemaVersion"], "deploymentSpec": {}}
    path = tmp_path_factory.mktemp("small") / "caspi-round.yaml"
    path.write_text(yaml.safe_dump({**spec, "root": {"inputDefinitions": real["root"]["inputDefinitions"]}}))
    return path


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, small: Path) -> None:
    if "[live]" in request.node.name:
        return
    monkeypatch.setattr(package, "pipeline_file", lambda: small)
    for name in ("KFP_ENDPOINT", "KFP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for module, name, value in [
        (submission, "SETTLE", 0.02),
        (submission, "LOOK", 0.02),
        (submission, "PATIENCE", 0.5),
        (runs_module, "PATIENCE", (0.0, 0.0)),
        (runs_module, "TIMEOUT", (2, 20)),
        (api_module, "PATIENCE", (0.0,)),
        (job_module, "LOOK_SECONDS", 0.02),
    ]:
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(api_module.retried, "__defaults__", ((0.0,),))


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    with serve(Backend(operations=OPERATIONS)) as backend:
        monkeypatch.setenv("KFP_ENDPOINT", backend.url)
        yield backend
    assert backend.violations == []


OPERATIONS = Backend().operations


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    with serve_objects(Objects()) as objects:
        objects.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("HELM", "/bin/true")
        yield objects


@pytest.fixture
def here(kfp: Backend, tmp_path: Path) -> Place:
    """The stand-in."""
    machines = tmp_path / "cluster.yaml"
    machines.write_text(yaml.safe_dump(CLUSTER), encoding="utf-8")
    return Place(tmp_path, machines, "tidy")


@pytest.fixture(params=["stand-in", pytest.param("live", marks=[pytest.mark.kfp, pytest.mark.timeout(1500)])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The stand-in, or the backend at KFP_ENDPOINT with the cluster file CLUSTER."""
    if request.param == "stand-in":
        request.getfixturevalue("kube")
        yield request.getfixturevalue("here")
        return
    missing = [name for name in ("KFP_ENDPOINT", "CLUSTER") if not os.environ.get(name)]
    assert not missing, f"{', '.join(missing)}: missing; make test-kfp KFP_ENDPOINT=https://... CLUSTER=clusters/x.yaml"
    live = Place(tmp_path, Path(os.environ["CLUSTER"]).resolve(), f"caspi-test-{secrets.token_hex(4)}")
    yield live
    live.cancel("--no-wait")


# On a real backend too


def test_once_twice_and_after_a_cancel(place: Place) -> None:
    """Submitted, found there, cancelled, cancelled again, gone on with."""
    first = place.submit()
    assert first.code == 0, first.err
    match = re.search(NAME_LINE.format(name=place.name, outcome="submitted"), first.out, re.MULTILINE)
    assert match, first.out
    run = place.run()
    assert match[2] == run
    again = place.submit("--json")
    told = json.loads(again.out)
    assert (again.code, told["outcome"], told["run"]) == (0, "there already", run)
    assert "is there already" in again.err
    cancelled = place.cancel()
    assert (cancelled.code, cancelled.out) == (0, f"{place.name} is cancelled\n"), cancelled.err
    assert "   canceled   " in place.status().out.splitlines()[0]
    nothing = place.cancel()
    assert nothing.code == 0, nothing.err
    assert nothing.out.endswith(": nothing to cancel\n")
    more = place.submit("--json")
    told = json.loads(more.out)
    assert (more.code, told["outcome"]) == (0, "resumed"), more.err
    assert told["run"] != run
    assert "was cancelled: a new one goes on from what is done" in more.err


def test_another_round_under_the_name_is_refused(place: Place) -> None:
    assert place.submit().code == 0
    run = place.run()
    other = place.submit(seed=7)
    assert (other.code, other.err.count("\n")) == (2, 1), other.err
    assert "is there already with another round (" in other.err
    assert f"give the changed round a new name, or cancel it with `caspi cancel {place.name} --to kfp`" in other.err
    assert place.run() == run, "the first one goes on"


def test_status_says_how_far(place: Place) -> None:
    assert place.submit().code == 0
    told = json.loads(place.status("--json").out)[0]
    assert {"round": place.name, "verdict": "running"}.items() <= told.items()
    assert re.fullmatch(r"[0-9a-f]{64}", told["spec"])
    assert [step["name"] for step in told["steps"]] == [
        *("export", "audit", "gate", "train", "benchmark", "compare", "report", "free")
    ]
    assert misfits(told["state"], "V2beta1RuntimeState") == []
    assert place.name in caspi("status", "--to", "kfp", "--cluster", str(place.cluster)).out
    unknown = caspi("status", f"{place.name}-not", "--to", "kfp", "--cluster", str(place.cluster))
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)
    assert f'no run of a round "{place.name}-not"; rounds are: ' in unknown.err


def test_a_dry_run_asks_nobody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://127.0.0.1:1")
    done = place.submit("--dry-run", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["run"] == f"{place.name}-{told['parameters']['digest'][:8]}"
    assert told["pipeline"] == package.version_name()


# Submit


def test_what_is_made(kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One experiment, one pipeline, one version named by its digest, one run with all parameters; no secret in it."""
    monkeypatch.setattr(package, "pipeline_file", pipeline_file)
    kfp.token = "s3cret-token"
    monkeypatch.setenv("KFP_TOKEN", "s3cret-token\n")
    done = here.submit("--approve-by", "Dana", "--approve-reason", "fine", "--approve-audit", "a" * 12)
    assert done.code == 0, done.err
    [run] = kfp.runs.values()
    [version] = kfp.versions.values()
    assert [one["display_name"] for one in kfp.experiments.values()] == ["caspi"]
    assert [one["display_name"] for one in kfp.pipelines.values()] == ["caspi-round"]
    assert version["display_name"] == package.version_name()
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    given = run["runtime_config"]["parameters"]
    spec = parse(yaml.safe_load(given["round"]), RoundSpec, "round")
    assert (given["digest"], run["display_name"]) == (spec.digest, f"tidy-{spec.digest[:8]}")
    assert parse(yaml.safe_load(given["cluster"]), ClusterSpec, "cluster").data_root == "/rounds/data"
    assert (given["approve_by"], given["approve_audit"], given["claim"]) == ("Dana", "a" * 12, "rounds")
    assert kfp.tokens == {"s3cret-token"}
    assert not any("s3cret" in text for text in (*kfp.bodies, done.out, done.err))


def test_the_second_round_uses_what_is_there(kfp: Backend, here: Place, small: Path) -> None:
    for name in ("tidy", "neat", "clean"):
        here.name = name
        assert here.submit().code == 0
    assert (len(kfp.experiments), len(kfp.pipelines), len(kfp.versions), len(kfp.runs)) == (1, 1, 1, 3)
    changed = here.folder / "pipeline.yaml"
    changed.write_text(small.read_text(encoding="utf-8") + "# another file\n", encoding="utf-8")
    here.name = "other"
    assert here.submit("--pipeline", str(changed)).code == 0
    assert (len(kfp.pipelines), len(kfp.versions)) == (1, 2)


def test_lists_of_many_pages(kfp: Backend, here: Place) -> None:
    """Rounds whose names begin alike are others; the backend gives two runs at a time."""
    kfp.page, digest = 2, parse(GOOD, RoundSpec, "good").digest
    for number in range(5):
        kfp.add_run(f"tidy-{number}-0000000{number}", digest="f" * 64)
    kfp.add_run(f"tidy-{digest[:8]}", "FAILED", ago=600)
    assert "resumed" in here.submit().out
    assert "there already" in here.submit().out


@pytest.mark.parametrize(
    ("state", "tasks", "code", "outcome"),
    [
        ("RUNNING", {"export": "RUNNING"}, 0, "there already"),
        ("PAUSED", {}, 0, "there already"),
        ("SUCCEEDED", {"gate": "SUCCEEDED", "train": "SUCCEEDED"}, 0, "done already"),
        ("SUCCEEDED", {}, 0, "done already"),  # an old run of which the backend kept no steps
        ("SUCCEEDED", {"gate": "SUCCEEDED", "condition_passed": "SKIPPED"}, 0, "resumed"),
        ("SUCCEEDED", {"gate": "SUCCEEDED", "train": "SKIPPED"}, 0, "resumed"),
        ("FAILED", {"export": "FAILED"}, 0, "resumed"),
        ("CANCELED", {}, 0, "resumed"),
    ],
)
def test_the_same_round_again(
    kfp: Backend, here: Place, state: str, tasks: dict[str, str], code: int, outcome: str
) -> None:
    here.submit()
    [run] = kfp.runs
    kfp.move(run, state, **tasks)
    again = here.submit("--json")
    assert (again.code, json.loads(again.out)["outcome"]) == (code, outcome), again.err
    assert len(kfp.runs) == (2 if outcome == "resumed" else 1)


def test_what_is_archived_does_not_count(kfp: Backend, here: Place) -> None:
    here.submit()
    [run] = kfp.runs
    kfp.move(run, "SUCCEEDED", gate="SUCCEEDED", train="SUCCEEDED")
    refused = here.submit(seed=7)
    assert (refused.code, len(kfp.runs)) == (2, 1)
    assert f"run {run}): give the changed round a new name, or archive that run in the UI" in refused.err
    kfp.runs[run]["storage_state"] = "ARCHIVED"
    assert "  submitted  " in here.submit(seed=7).out


def test_two_people_at_once(kfp: Backend, here: Place) -> None:
    """The other one's run is older by a moment: it goes on, and ours is cancelled."""
    here.submit()
    [mine] = kfp.runs
    name, given = kfp.runs[mine]["display_name"], kfp.runs[mine]["runtime_config"]["parameters"]
    kfp.runs.clear()
    theirs: list[str] = []
    kfp.before["run_service_create_run"] = lambda: theirs.append(kfp.add_run(name, ago=2, **given))
    done = here.submit("--json")
    told = json.loads(done.out)
    assert (done.code, told["outcome"], told["run"]) == (0, "there already", theirs[0])
    assert "was submitted a moment before by somebody else: that run goes on" in done.err
    [ours] = set(kfp.runs) - set(theirs)
    assert f"run {ours} is cancelled: another one was there first" in done.err
    assert kfp.runs[ours]["state"] == "CANCELING"


def test_two_people_with_two_rounds_of_one_name(kfp: Backend, here: Place) -> None:
    theirs: list[str] = []
    kfp.before["run_service_create_run"] = lambda: theirs.append(kfp.add_run("tidy-ffffffff", ago=2, digest="f" * 64))
    done = here.submit()
    assert done.code == 2
    assert "is there already with another round (ffffffff, not " in done.err
    [ours] = set(kfp.runs) - set(theirs)
    assert (kfp.runs[ours]["state"], kfp.runs[theirs[0]]["state"]) == ("CANCELING", "RUNNING")


def test_somebody_uploads_the_same_version_meanwhile(kfp: Backend, here: Place) -> None:
    """What is there already by then is used."""
    here.submit()
    kept = [dict(there) for there in (kfp.experiments, kfp.pipelines, kfp.versions)]
    for there, names in zip(
        (kfp.experiments, kfp.pipelines, kfp.versions),
        ("experiment_service_create_experiment", "pipeline_service_create_pipeline", "upload_pipeline_version"),
        strict=True,
    ):
        before = dict(there)
        there.clear()
        kfp.before[names] = lambda there=there, before=before: there.update(before)  # type: ignore[misc]
    kfp.runs.clear()
    assert "  submitted  " in here.submit().out
    assert kept == [kfp.experiments, kfp.pipelines, kfp.versions]


MAKING = ("create_experiment", "create_pipeline", "upload_pipeline_version", "create_run")


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("operation", MAKING)
def test_killed_and_repeated(
    kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch, operation: str, done: bool
) -> None:
    real = runs_module.call

    def killed(method: Callable[..., Any], *given: Any, **more: Any) -> Any:
        if method.__name__.endswith(operation):
            if done:
                real(method, *given, **more)
            raise KeyboardInterrupt
        return real(method, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(runs_module, "call", killed)
        assert here.submit().code == 130
    again = here.submit("--json")
    assert again.code == 0, again.err
    made = operation == "create_run" and done
    assert json.loads(again.out)["outcome"] == ("there already" if made else "submitted")
    assert (len(kfp.experiments), len(kfp.pipelines), len(kfp.versions), len(kfp.runs)) == (1, 1, 1, 1)


READING = ("list_runs", "get_healthz")


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        *((one, fault) for one in (*MAKING, *READING) for fault in (503, "cut", "lost")),
        *((one, fault) for one in ("create_run", "list_runs") for fault in (500, "hang")),
    ],
)
def test_what_passes_is_tried_again(
    kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch, operation: str, fault: int | str
) -> None:
    """Also an answer that is lost after the work was done: nothing is made twice."""
    monkeypatch.setattr(runs_module, "TIMEOUT", (2, 1 if fault == "hang" else 20))
    kfp.faults = {operation: [fault, fault]}
    done = here.submit("--json")
    assert done.code == 0, done.err
    once = fault == "lost" and operation in MAKING  # the second time it is there already
    assert kfp.faults == {operation: [fault] if once else []}
    assert (len(kfp.experiments), len(kfp.pipelines), len(kfp.versions), len(kfp.runs)) == (1, 1, 1, 1)


def test_a_run_that_is_listed_late_is_made_once(kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module.Backend, "runs", lambda self, round=None: [])
    done = here.submit()
    assert "  submitted  " in done.out, done.err
    assert len(kfp.runs) == 1


def test_waits_until_a_cancelled_run_has_ended(kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here.submit()
    [run] = kfp.runs
    kfp.move(run, "CANCELING")
    stuck = here.submit()
    assert (stuck.code, len(kfp.runs)) == (2, 1)
    assert f"waiting until run {run} has ended, for " in stuck.err
    looked = iter([lambda: None, lambda: kfp.move(run, "CANCELED")])
    monkeypatch.setattr(submission.time, "sleep", lambda _: next(looked, lambda: None)())
    assert "  resumed  " in here.submit().out


# What goes wrong


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (401, "it wants to know who asks (HTTP 401): KFP_TOKEN is missing"),
        (403, "the owner of KFP_TOKEN may not do that (HTTP 403): planted"),
        (302, "it wants to know who asks (HTTP 302): KFP_TOKEN is missing"),
        (404, "what answers is not the API of Kubeflow Pipelines 2 (/apis/v2beta1)"),
        ("page", "what answers is not the API of Kubeflow Pipelines 2 (/apis/v2beta1)"),
        (503, "Kubeflow Pipelines can't answer now (HTTP 503): planted"),
        ("cut", "Kubeflow Pipelines can't be reached: it broke the connection off"),
    ],
)
@pytest.mark.parametrize("command", ["submit", "status", "cancel"])
def test_one_line_for_each_refusal(kfp: Backend, here: Place, command: str, fault: int | str, line: str) -> None:
    kfp.faults = {"": [fault] * 20}
    done = {"submit": here.submit, "status": here.status, "cancel": here.cancel}[command]()
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith(f"{kfp.url}: {line}")
    assert kfp.runs == {}


def test_a_backend_that_hangs(kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "TIMEOUT", (2, 0.2))
    kfp.faults = {"": ["hang"] * 20}
    done = here.status()
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith(f"{kfp.url}: Kubeflow Pipelines can't be reached: no answer in time")


def test_a_token_that_is_not_taken(kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    kfp.token, kfp.readers = "right", ("reader",)
    monkeypatch.setenv("KFP_TOKEN", "wrong")
    assert "KFP_TOKEN is not taken: it may have expired" in here.submit().err
    monkeypatch.setenv("KFP_TOKEN", "reader")
    done = here.submit()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "may not do that (HTTP 403): User 'reader' is not authorized" in done.err
    monkeypatch.setenv("KFP_TOKEN", "two words")
    assert here.submit().err == "KFP_TOKEN is no token: it has spaces, line ends or other letters in it\n"


def test_no_endpoint_and_nobody_there(kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_ENDPOINT")
    done = here.submit()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "kubernetes: {pipelines: {endpoint: https://" in done.err
    assert done.err.endswith("or KFP_ENDPOINT\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("KFP_ENDPOINT", f"http://127.0.0.1:{port}/")
    done = here.status()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"http://127.0.0.1:{port}: Kubeflow Pipelines can't be reached: nothing listens there;")
    monkeypatch.setenv("KFP_ENDPOINT", "https://me:s3cret@kfp.example.com")
    done = here.status()
    assert done.code == 2
    assert "s3cret" not in done.err


def test_an_older_backend(kfp: Backend, here: Place) -> None:
    kfp.hidden = {one.name for one in kfp.operations}
    done = here.submit()
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "not the API of Kubeflow Pipelines 2" in done.err


def test_several_users(kfp: Backend, here: Place) -> None:
    kfp.multi_user = True
    refused = here.submit()
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "this backend is for several users: say whose runs these are" in refused.err
    named = {**KUBERNETES, "pipelines": {"namespace": "team-a", "endpoint": kfp.url}}
    here.cluster.write_text(yaml.safe_dump({**CLUSTER, "kubernetes": named}), encoding="utf-8")
    assert here.submit().code == 0
    assert "there already" in here.submit().out
    assert [one["namespace"] for one in kfp.experiments.values()] == ["team-a"]
    of_another = caspi("status", "tidy", "--to", "kfp", "--namespace", "team-b")
    assert 'no run of a round "tidy"' in of_another.err
    kfp.multi_user = False
    assert here.submit().code == 0, "one user only: a namespace that is given for the other kind is left out"


def test_a_package_that_is_none(kfp: Backend, here: Place, tmp_path: Path, small: Path) -> None:
    for name, text, line in [
        ("none.yaml", None, "can't be read: No such file"),
        ("text.yaml", "hello", "no compiled pipeline of Caspi's"),
        ("broken.yaml", "a: [", "no compiled pipeline of Caspi's"),
        ("package.txt", small.read_text(encoding="utf-8"), "no compiled pipeline of Caspi's"),
    ]:
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
        done = here.submit("--pipeline", str(tmp_path / name))
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert done.err.startswith(f"{tmp_path / name}: {line}")
    refused = tmp_path / "refused.yaml"
    refused.write_text(small.read_text(encoding="utf-8").replace("deploymentSpec:", "deployed:"))
    done = here.submit("--pipeline", str(refused))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith(f"{kfp.url}: the pipeline {refused} is not taken: ")
    assert "Failed to parse the pipeline spec" in done.err
    assert kfp.runs == {}


def test_a_pipeline_of_another_version(here: Place) -> None:
    package = read_package(pipeline_file())
    given = parameters(parse(GOOD, RoundSpec, "good"), parse(CLUSTER, ClusterSpec, "cluster"))
    assert set(fitting(given, package)) <= set(package.parameters)
    with pytest.raises(UserError, match="does not take seats: it is not of this version"):
        fitting({**given, "seats": "4"}, package)
    assert "seats" not in fitting({**given, "seats": ""}, package), "what says nothing may be left out"
    del given["image"]
    with pytest.raises(UserError, match="wants image"):
        fitting(given, package)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"images": {"train": IMAGE.format("train")}}, "kubernetes.images.launcher: missing"),
        ({"images": None}, "kubernetes.images: missing"),
        ({"secrets": {"huggingface": "hub/HF_TOKEN"}}, 'kubernetes.secrets.huggingface = "hub/HF_TOKEN"'),
        ({"pipelines": {"endpoint": "https://me:word@kfp.example.com"}}, "kubernetes.pipelines.endpoint"),
        ({"pipelines": {"benchmark_gpus": -1}}, "kubernetes.pipelines.benchmark_gpus = -1"),
    ],
)
def test_a_cluster_file_that_does_not_do(kfp: Backend, here: Place, change: dict[str, Any], line: str) -> None:
    here.cluster.write_text(yaml.safe_dump({**CLUSTER, "kubernetes": {**KUBERNETES, **change}}), encoding="utf-8")
    done = here.submit()
    assert done.code == 2
    assert done.err.startswith(f"{here.cluster}: {line}")
    assert kfp.asked == []


def test_options_that_do_not_go_together(here: Place, tmp_path: Path) -> None:
    assert here.submit("--values", str(tmp_path / "x.yaml")).err.startswith("--values goes with --to helm")
    file = str(tmp_path / "tidy.yaml")
    helm = caspi("submit", file, "--cluster", str(here.cluster), "--pipeline", file)
    assert helm.err == "--pipeline goes with --to kfp\n"


def test_what_the_cluster_file_says_reaches_the_run(kfp: Backend, here: Place) -> None:
    more = {
        "pipelines": {
            "experiment": "hebrew",
            "pull_secret": "registry",
            "node_selector": {"pool": "cpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "benchmark_gpus": 1,
        },
        "secrets": {"huggingface": "hub/token"},
        "context": "my-laptop",
    }
    here.cluster.write_text(yaml.safe_dump({**CLUSTER, "kubernetes": {**KUBERNETES, **more}}), encoding="utf-8")
    assert here.submit().code == 0
    [run] = kfp.runs.values()
    given = run["runtime_config"]["parameters"]
    assert {"huggingface_secret": "hub", "pull_secret": "registry", "benchmark_gpus": "1"}.items() <= given.items()
    assert given["node_selector"] == {"pool": "cpu"}
    assert given["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert [one["display_name"] for one in kfp.experiments.values()] == ["hebrew"]
    assert "my-laptop" not in given["cluster"], "in a pod there is no kubeconfig"


# Status and waiting


def test_status_of_a_run_under_way(kfp: Backend, here: Place) -> None:
    here.submit()
    [run] = kfp.runs
    kfp.move(run, "RUNNING", export="SUCCEEDED", audit="SUCCEEDED", gate="SUCCEEDED", train="RUNNING")
    lines = here.status().out.splitlines()
    assert re.fullmatch(rf"tidy-[0-9a-f]{{8}}   running   \d s   {kfp.url}/#/runs/details/{run}", lines[0])
    assert re.fullmatch(r"  export     succeeded   \d s", lines[1])
    assert re.fullmatch(r"  train      running     \d s", lines[4])
    assert lines[5:] == [
        *(f"  {name:<9}  -" for name in ("benchmark", "compare", "report", "free")),
        "  training is a PyTorchJob: caspi status tidy --to helm",
    ]


@pytest.mark.parametrize(
    ("state", "tasks", "kind", "line"),
    [
        ("SUCCEEDED", {"gate": "SUCCEEDED", "train": "SUCCEEDED"}, None, ""),
        ("SUCCEEDED", {"gate": "SUCCEEDED"}, GateRefused, "tidy: the gate refused, and training was skipped"),
        ("CANCELED", {}, StageFailed, "tidy: the run was cancelled"),
        ("FAILED", {}, StageFailed, "tidy: the run: failed; its log says why"),
        ("FAILED", {"export": "FAILED: Error (exit code 2)"}, UserError, "tidy: export: Error (exit code 2)"),
        ("FAILED", {"train": "FAILED: main: Error (exit code 5)"}, Diverged, "tidy: train: main: Error (exit code 5)"),
        ("FAILED", {"train": "FAILED: Error (exit code 6)"}, OutOfBudget, "tidy: train: Error (exit code 6)"),
        ("FAILED", {"train": "FAILED: OOMKilled (exit code 137)"}, StageFailed, "tidy: train: OOMKilled"),
        ("FAILED", {"audit-driver": "FAILED: no claim\nat all"}, StageFailed, "tidy: audit: no claim at all"),
        ("FAILED", {"free": "FAILED: x", "train": "FAILED: y"}, StageFailed, "tidy: train: y"),
    ],
)
def test_how_waiting_ends(
    kfp: Backend,
    here: Place,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    tasks: dict[str, str],
    kind: type[CaspiError] | None,
    line: str,
) -> None:
    looked = iter([lambda run: kfp.move(run, "RUNNING", export="RUNNING"), lambda run: kfp.move(run, state, **tasks)])
    monkeypatch.setattr(submission.time, "sleep", lambda _: next(looked, lambda run: None)(next(iter(kfp.runs))))
    done = here.submit("--wait")
    assert done.code == (kind.exit_code if kind else 0), done.err
    last = done.err.splitlines()[-1]
    assert last.startswith(line)
    if "FAILED" in str(tasks):
        step, _, why = line.removeprefix("tidy: ").partition(": ")
        assert re.search(rf"^  {step} +failed .*{re.escape(why)}", here.status().out, re.MULTILINE)


def test_waiting_outlasts_a_backend_that_is_away(kfp: Backend, here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here.submit()
    [run] = kfp.runs
    kfp.move(run, "RUNNING", export="RUNNING")
    kfp.faults = {"get_run": [503] * 8}
    kfp.before["run_service_get_run"] = lambda: kfp.move(run, "SUCCEEDED", gate="SUCCEEDED", train="SUCCEEDED")
    done = here.submit("--wait")
    assert done.code == 0, done.err
    assert done.err.count("can't answer now (HTTP 503): planted; waiting") == 1
    kfp.runs[run]["state"] = "RUNNING"
    kfp.faults = {"get_run": [503] * 1000}
    assert here.submit("--wait").code == 2, "but not for ever"


def test_status_when_the_run_itself_has_the_error(kfp: Backend, here: Place) -> None:
    here.submit()
    [run] = kfp.runs
    kfp.move(run, "FAILED", error="workflow shutdown\nwith no steps")
    assert "\n  workflow shutdown with no steps\n" in here.status().out
    told = json.loads(here.status("--json").out)[0]
    assert (told["error"], told["verdict"]) == ("workflow shutdown with no steps", "failed")


# Cancel


def pytorchjob(run: str, *conditions: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "tidy",
            "uid": "uid-tidy",
            "resourceVersion": "7",
            "labels": {
                "caspi.dev/pipeline-run": run,
                "caspi.dev/round": "tidy",
                "app.kubernetes.io/instance": "tidy",
                "app.kubernetes.io/name": "caspi-train",
            },
            "annotations": {},
        },
        "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 1, "template": {"spec": {"containers": []}}}}},
        "status": {"conditions": [{"type": one, "status": "True"} for one in conditions]},
    }


JOB = "/apis/kubeflow.org/v1/namespaces/asr/pytorchjobs/tidy"


def test_cancel_takes_the_job_off_the_cluster(kfp: Backend, kube: Objects, here: Place) -> None:
    here.submit()
    [run] = kfp.runs
    kube.objects[JOB] = pytorchjob(run, "Running")
    done = here.cancel()
    assert (done.code, done.out) == (0, "tidy is cancelled\n"), done.err
    assert JOB not in kube.objects
    assert f"run {run} is asked to end" in done.err
    assert kfp.runs[run]["state"] == "CANCELED"
    assert "nothing to cancel" in here.cancel().out


@pytest.mark.parametrize(
    ("state", "owner", "conditions", "stays"),
    [
        ("CANCELED", "", ["Running"], False),  # a cancel that was cut off in the middle
        ("CANCELED", "freed", ["Running"], False),  # by the exit task, which was cut off
        ("CANCELED", "of-somebody-else", ["Running"], True),
        ("FAILED", "", ["Failed"], True),  # holds no GPU, and says why
        ("SUCCEEDED", "", ["Succeeded"], True),
    ],
)
def test_jobs_of_runs_that_have_ended(
    kfp: Backend, kube: Objects, here: Place, state: str, owner: str, conditions: list[str], stays: bool
) -> None:
    here.submit()
    [run] = kfp.runs
    kfp.move(run, state, gate="SUCCEEDED", train=state if state != "CANCELED" else "FAILED")
    kube.objects[JOB] = pytorchjob(owner or run, *conditions)
    done = here.cancel()
    assert done.code == 0, done.err
    assert (JOB in kube.objects) == stays
    assert ("nothing to cancel" in done.out) == stays


def test_cancel_when_terminate_does_nothing(kfp: Backend, kube: Objects, here: Place) -> None:
    """The GPUs are free all the same, and the line has the way out."""
    kfp.terminates = "never"
    here.submit()
    [run] = kfp.runs
    kube.objects[JOB] = pytorchjob(run, "Running")
    done = here.cancel()
    assert done.code == 4
    assert f"run {run} was asked to end, and is PENDING after" in done.err
    assert f"kubectl delete workflow --selector pipeline/runid={run}" in done.err
    assert JOB not in kube.objects
    assert here.cancel("--no-wait").code == 0


def test_a_step_that_was_not_told_puts_the_job_there_again(kfp: Backend, kube: Objects, here: Place) -> None:
    kfp.terminates = "when told"
    here.submit()
    [run] = kfp.runs
    kube.objects[JOB] = pytorchjob(run, "Running")

    def again() -> None:
        kube.objects[JOB] = pytorchjob(run, "Running")
        kfp.move(run, "CANCELED")

    kfp.before["run_service_get_run"] = again
    assert here.cancel().code == 0
    assert JOB not in kube.objects


def test_cancel_without_a_cluster_in_reach(kfp: Backend, here: Place) -> None:
    here.submit()
    [run] = kfp.runs
    done = here.cancel()
    assert (done.code, done.err.count("\n")) == (2, 2), done.err
    assert kfp.runs[run]["state"] == "CANCELING"
    assert "its run is asked to end, but whether its PyTorchJob is on the cluster can't be seen: " in done.err


def test_cancel_of_what_was_never_there(kfp: Backend, here: Place) -> None:
    done = here.cancel()
    assert (done.code, done.out) == (0, f"tidy does not run at {kfp.url}: nothing to cancel\n")


def test_a_run_that_ends_while_it_is_cancelled(kfp: Backend, kube: Objects, here: Place) -> None:
    here.submit()
    [run] = kfp.runs
    kfp.before["run_service_terminate_run"] = lambda: kfp.move(run, "SUCCEEDED", gate="SUCCEEDED", train="SUCCEEDED")
    assert here.cancel().code == 0
    assert kfp.runs[run]["state"] == "SUCCEEDED"


# The next step, and the stand-in itself

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
SAME, OTHER = "a" * 64, "b" * 64


def a_run(id: str, state: str, digest: str = SAME, minute: int = 0, **more: Any) -> Run:
    made = NOON + timedelta(minutes=minute)
    return Run(id, f"tidy-{digest[:8]}", state, made, parameters={"digest": digest}, **more)


@pytest.mark.parametrize(
    ("seen", "made", "kind", "outcome", "stop"),
    [
        ([], "", "make", "submitted", []),
        ([a_run("1", "RUNNING")], "", "end", "there already", []),
        ([a_run("1", "")], "", "end", "there already", []),
        ([a_run("1", "PENDING")], "1", "end", "submitted", []),
        ([a_run("1", "FAILED"), a_run("2", "PENDING", minute=1)], "2", "end", "resumed", []),
        ([a_run("1", "RUNNING"), a_run("2", "PENDING")], "2", "end", "there already", ["2"]),
        ([a_run("1", "RUNNING"), a_run("2", "PENDING")], "1", "end", "submitted", ["2"]),
        # a double that a killed client left
        ([a_run("1", "RUNNING"), a_run("2", "RUNNING"), a_run("3", "RUNNING")], "", "end", "there already", ["2", "3"]),
        ([a_run("1", "RUNNING", OTHER), a_run("2", "PENDING")], "2", "refuse", "submitted", ["2"]),
        ([a_run("1", "RUNNING"), a_run("2", "PENDING", OTHER)], "1", "end", "submitted", []),
        ([a_run("1", "SUCCEEDED", OTHER)], "", "refuse", "submitted", []),
        ([a_run("1", "SUCCEEDED", OTHER, archived=True)], "", "make", "submitted", []),
        ([a_run("1", "FAILED", OTHER)], "", "make", "submitted", []),
        ([a_run("1", "CANCELING", OTHER)], "", "wait", "submitted", []),
        ([a_run("1", "SUCCEEDED")], "", "end", "done already", []),
        ([a_run("1", "SUCCEEDED")], "1", "end", "submitted", []),
        ([a_run("1", "FAILED")], "1", "end", "submitted", []),
        ([a_run("1", "SUCCEEDED"), a_run("2", "FAILED", minute=1)], "", "end", "done already", []),
        ([a_run("1", "SUCCEEDED", archived=True)], "", "make", "resumed", []),
    ],
)
def test_the_next_step(seen: list[Run], made: str, kind: str, outcome: str, stop: list[str]) -> None:
    step = next_step(Wanted("tidy", SAME, "caspi", {}), seen, made)
    assert (step.kind, step.outcome, [run.id for run in step.stop]) == (kind, outcome, stop)


def test_a_graph_that_meets_itself_is_read_once() -> None:
    tasks = (
        Task("1", "train", "FAILED", children=("2",)),
        Task("2", "executor", "FAILED", error="first", children=("3", "1")),
        Task("3", "executor(0)", "FAILED", error="the last word", children=("2",)),
    )
    run = a_run("1", "FAILED", tasks=tasks)
    assert str(problem(run)) == "tidy: train: the last word"
    assert "the last word" in render(run, "http://x", NOON)
    assert describe(run, "http://x")["steps"][3]["error"] == "the last word"


def test_the_stand_in_refuses_what_is_not_published(here: Place, kfp: Backend) -> None:
    """The fault that it is there for: a field, a type, a parameter, a route that KFP does not have."""
    import httpx

    for method, path, body, line in [
        ("GET", "/apis/v2beta1/runs?colour=red", None, "query colour: not in run_service_list_runs"),
        ("GET", "/apis/v2beta1/runs?page_size=ten", None, "query page_size: no int"),
        ("GET", '/apis/v2beta1/runs?filter={"predicates":[{"op":"IS"}]}', None, "op: not in V2beta1Predicate"),
        ("POST", "/apis/v2beta1/runs", {"name": "x"}, "body.name: not in V2beta1Run"),
        ("POST", "/apis/v2beta1/runs", {"state": "HAPPY"}, "'HAPPY' is none of V2beta1RuntimeState"),
        ("POST", "/apis/v2beta1/experiments", {"display_name": 7}, "body.display_name: 7 is no str"),
        ("GET", "/apis/v1beta1/runs", None, "GET /apis/v1beta1/runs: no such route"),
    ]:
        answer = httpx.request(method, kfp.url + path, json=body)
        assert answer.status_code in (400, 404)
        assert line in kfp.violations.pop(), path
    kfp.experiments["1"] = {"colour": "red", "display_name": "x"}
    httpx.get(kfp.url + "/apis/v2beta1/experiments")
    assert "colour: not in V2beta1Experiment" in kfp.violations.pop()
    assert len(OPERATIONS) >= 40
