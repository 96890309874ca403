"""How the pipeline trains on Kubernetes: the real client and the real submit against a cluster of a few lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from caspi.errors import GateRefused, StageFailed, Unanswered
from caspi.fleet import api as api_module
from caspi.fleet import logs as logs_module
from caspi.fleet.api import Api
from caspi.pipeline import job as job_module
from caspi.pipeline.job import FREED, RUN, free, train_by_helm
from caspi.records.record import write_record
from caspi.records.round_dir import RoundDir, create, open_round
from caspi.spec import ClusterSpec, RoundSpec, parse
from tests.standins.answering import answering
from tests.test_audit_gate import record, spec_values, write_audit
from tests.test_fleet_api import kubeconfig

NAME = "r1"
IMAGE = "registry.example.com/caspi-train@sha256:" + "0" * 64
DIGEST = "caspi.dev/spec-digest"
HELM = """#!{python}
import sys, urllib.request
text = sys.stdin.buffer.read() if "-f" in sys.argv else b""
request = urllib.request.Request("{url}/helm/" + sys.argv[1], data=text, method="POST")
sys.stdout.buffer.write(urllib.request.urlopen(request).read())
"""


class Cluster(BaseHTTPRequestHandler):
    """One namespace with at most one PyTorchJob, and Helm behind the same port."""

    job: ClassVar[dict[str, Any] | None] = None
    values: ClassVar[dict[str, Any] | None] = None
    made: ClassVar[int] = 0
    written: ClassVar[int] = 0
    refuses: ClassVar[int] = 0
    """So many requests are answered with 503 from here on."""
    looked: ClassVar[int] = 0
    on_look: ClassVar[Callable[[int], None]] = lambda looked: None
    """Called with how often the job was looked at."""
    on_patch: ClassVar[Callable[[], None]] = lambda: None
    """Called when a patch has come, before it is done."""
    protocol_version = "HTTP/1.1"

    @classmethod
    def make(cls, run: str = "", suspend: bool = False, digest: str = "") -> None:
        cls.made += 1
        cls.job = {
            "apiVersion": "kubeflow.org/v1",
            "metadata": {
                "name": NAME,
                "uid": f"uid-{cls.made}",
                "resourceVersion": "1",
                "labels": {"caspi.dev/round": NAME, **({RUN: run} if run else {})},
                "annotations": {DIGEST: digest or Cluster.values["round"]["digest"] if Cluster.values else digest},
            },
            "spec": {"runPolicy": {"suspend": True} if suspend else {}, "pytorchReplicaSpecs": {"Worker": {}}},
            "status": {"conditions": []},
        }

    @classmethod
    def write(cls, **change: Any) -> None:
        """What the operator or another run does."""
        assert cls.job
        cls.written += 1
        cls.job = merged(cls.job, change)
        cls.job["metadata"]["resourceVersion"] = str(cls.written + 1)

    @classmethod
    def ends(cls, condition: str) -> None:
        cls.write(status={"conditions": [{"type": condition, "status": "True", "reason": "R", "message": "as it is"}]})

    def do_GET(self) -> None:
        path = self.path.split("?")[0].rsplit("/", 1)[1]
        if Cluster.refuses > 0:
            Cluster.refuses -= 1
            return self.answer(503, {"message": "the server is currently unable to handle the request"})
        if path == "pytorchjobs":
            Cluster.looked += 1
            Cluster.on_look(Cluster.looked)
        if path == NAME:
            return self.answer(200, Cluster.job) if Cluster.job else self.answer(404, {"message": "not found"})
        found: list[dict[str, Any]] = [Cluster.job] if path == "pytorchjobs" and Cluster.job else []
        if path == "secrets" and Cluster.values is not None:
            labels = {"owner": "helm", "version": "1", "status": "deployed", "modifiedAt": "1"}
            found = [{"metadata": {"name": "v1", "uid": "u", "labels": labels}}]
        return self.answer(200, {"items": found})

    def do_PATCH(self) -> None:
        change = self.body()
        Cluster.on_patch()
        assert Cluster.job
        seen = change["metadata"]["resourceVersion"]
        if seen != Cluster.job["metadata"]["resourceVersion"]:
            said = 'Operation cannot be fulfilled on pytorchjobs "r1": the object has been modified; please apply'
            return self.answer(409, {"message": said})
        Cluster.write(**change)
        return self.answer(200, Cluster.job)

    def do_POST(self) -> None:
        match self.path.rsplit("/", 1)[1]:
            case "upgrade":
                Cluster.values = self.body()
                if Cluster.job is None:
                    Cluster.make()
            case "uninstall":
                Cluster.values = Cluster.job = None
        return self.answer(200, Cluster.values or {})

    def do_DELETE(self) -> None:
        assert self.path.endswith(f"/pytorchjobs/{NAME}"), self.path
        Cluster.job = None
        return self.answer(200, {})

    def body(self) -> dict[str, Any]:
        return dict(yaml.safe_load(self.rfile.read(int(self.headers.get("Content-Length", 0)))) or {})

    def answer(self, code: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for name, value in above.items():
        both[name] = merged(below[name], value) if isinstance(value, dict) and name in below else value
    return both


@pytest.fixture
def round_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RoundDir]:
    """A round that has passed the gate, and a cluster that has nothing."""
    Cluster.job = Cluster.values = None
    Cluster.made = Cluster.written = Cluster.refuses = Cluster.looked = 0
    Cluster.on_look, Cluster.on_patch = staticmethod(lambda looked: None), staticmethod(lambda: None)
    monkeypatch.setattr(api_module.retried, "__defaults__", ((0.0,),))
    monkeypatch.setattr(logs_module, "LOOK_EVERY", 0.01)
    for name in ("LOOK_SECONDS", "GONE_SECONDS", "RECORD_SECONDS"):
        monkeypatch.setattr(job_module, name, 0.05)
    cluster = ClusterSpec.model_validate(
        {
            "data_root": "/rounds/data",
            "kubernetes": {"namespace": "asr", "images": {"train": IMAGE}, "storage": {"claim": "rounds"}},
        }
    )
    made = create(tmp_path / "runs", parse(spec_values(), RoundSpec, "r1.yaml"), cluster, tmp_path)
    write_audit(made, "PROCEED")
    with answering(Cluster) as url:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, url)))
        helm = tmp_path / "helm"
        helm.write_text(HELM.format(python=sys.executable, url=url), encoding="utf-8")
        helm.chmod(0o755)
        monkeypatch.setenv("HELM", str(helm))
        yield made


def trained(round_dir: RoundDir, **values: Any) -> None:
    """What the workers leave."""
    inputs = {"audit": round_dir.succeeded("audit").digest}
    write_record(round_dir.folder("train") / "record.json", record(round_dir, "train", inputs=inputs, **values))


def finishing(round_dir: RoundDir, at: int = 3) -> None:
    """The job succeeds when it is looked at for the third time, and its record is there."""

    def look(looked: int) -> None:
        if looked == at:
            trained(round_dir)
            Cluster.ends("Succeeded")

    Cluster.on_look = staticmethod(look)


def train(round_dir: RoundDir, run: str = "run-1") -> list[str]:
    said: list[str] = []
    train_by_helm(round_dir, run, said.append)
    return said


def label() -> str | None:
    assert Cluster.job
    found: str | None = Cluster.job["metadata"]["labels"].get(RUN)
    return found


def test_it_is_submitted_labelled_and_waited_for(round_dir: RoundDir) -> None:
    finishing(round_dir)
    said = train(round_dir)
    assert (Cluster.made, label()) == (1, "run-1")
    assert Cluster.values and Cluster.values["preparation"] == {"enabled": False}
    assert "r1: submitted, namespace asr" in said[0]


def test_nothing_without_a_passed_gate(round_dir: RoundDir) -> None:
    write_audit(round_dir, "STOP")
    with pytest.raises(GateRefused):
        train(round_dir)
    assert Cluster.made == 0


def test_a_finished_round_asks_nobody(round_dir: RoundDir, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(round_dir)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert train(round_dir) == ["trained already, on the same data: nothing to do"]


def test_a_running_job_is_adopted_and_becomes_this_runs(round_dir: RoundDir) -> None:
    finishing(round_dir, at=2)
    train(round_dir, "run-1")
    Cluster.job, Cluster.looked = merged(Cluster.job or {}, {"status": {"conditions": []}}), 0
    (round_dir.folder("train") / "record.json").unlink()
    said = train(round_dir, "run 2")
    assert (Cluster.made, label()) == (1, "run-2")
    assert "there already" in said[0]


def test_a_job_that_waits_for_its_own_preparation_is_let_go(round_dir: RoundDir) -> None:
    """Of `caspi submit --to helm`: the pipeline has passed the gate, and takes that job's gate off."""
    Cluster.values = {"round": {"name": NAME, "digest": round_dir.spec.digest}, "preparation": {}}
    Cluster.make(suspend=True)
    finishing(round_dir)
    said = train(round_dir)
    assert Cluster.job and Cluster.job["spec"]["runPolicy"]["suspend"] is False
    assert (Cluster.made, label()) == (1, "run-1")
    assert "updated" in said[0]


@pytest.mark.parametrize("moment", [1, 2, 3, 5])
def test_a_silent_cluster_is_waited_for(round_dir: RoundDir, moment: int) -> None:
    """From some look on it refuses more requests than the client's own tries are good for."""
    finishing(round_dir, at=6)
    finish = Cluster.on_look

    def look(looked: int) -> None:
        if looked == moment:
            Cluster.refuses = 7
        finish(looked)

    Cluster.on_look = staticmethod(look)
    said = train(round_dir)
    assert Cluster.refuses == 0
    assert sum("could not do it just now" in line and "waiting" in line for line in said) >= 1
    assert Cluster.made == 1


def test_silence_has_an_end(round_dir: RoundDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "PATIENCE", 0.2)
    Cluster.on_look = staticmethod(lambda looked: setattr(Cluster, "refuses", 10**6))
    with pytest.raises(Unanswered, match="The job goes on without this step"):
        train(round_dir)
    assert Cluster.job and label() == "run-1", "it is left alone"


def test_silence_from_the_beginning_has_an_end_too(round_dir: RoundDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "PATIENCE", 0.2)
    Cluster.refuses = 10**6
    with pytest.raises(Unanswered):
        train(round_dir)


def test_a_failed_job_ends_the_step_and_is_started_again_by_the_next(round_dir: RoundDir) -> None:
    Cluster.on_look = staticmethod(lambda looked: Cluster.ends("Failed") if looked == 3 else None)
    with pytest.raises(StageFailed, match="r1: R: as it is"):
        train(round_dir)
    finishing(round_dir, at=Cluster.looked + 3)
    said = train(round_dir, "run-2")
    assert (Cluster.made, label()) == (2, "run-2")
    assert any("from its last checkpoint" in line for line in said)


def test_a_job_that_is_cancelled_ends_the_step(round_dir: RoundDir) -> None:
    def look(looked: int) -> None:
        if looked == 3:
            Cluster.job = Cluster.values = None

    Cluster.on_look = staticmethod(look)
    with pytest.raises(StageFailed, match="is gone from namespace asr: was it cancelled"):
        train(round_dir)


def test_success_without_a_record_is_none(round_dir: RoundDir) -> None:
    Cluster.on_look = staticmethod(lambda looked: Cluster.ends("Succeeded") if looked == 3 else None)
    with pytest.raises(StageFailed, match="mount the same disk"):
        train(round_dir)


def test_a_model_of_other_data_is_made_anew(round_dir: RoundDir) -> None:
    """The job of before succeeded, and its record stands, but the export is another one now."""
    finishing(round_dir)
    train(round_dir)
    trained_on = round_dir.record("train")
    write_record(round_dir.folder("export") / "record.json", record(round_dir, "export", inputs={"data": "2"}))
    export = round_dir.succeeded("export").digest
    write_audit(round_dir, "PROCEED", results={**round_dir.succeeded("audit").results, "sampled": 99})
    assert round_dir.succeeded("export").digest != export
    finishing(round_dir, at=Cluster.looked + 4)
    said = train(round_dir)
    assert Cluster.made == 2, said
    now = round_dir.record("train")
    assert trained_on and now and now.inputs != trained_on.inputs


def test_pods_do_not_forget_where_the_round_is(round_dir: RoundDir, tmp_path: Path) -> None:
    """They adopt the round directory with a cluster file that does not say; a step that is tried again has to know."""
    told = round_dir.cluster.model_copy(update={"kubernetes": None})
    create(round_dir.path.parent, round_dir.spec, told, tmp_path)
    assert open_round(round_dir.path).cluster.kubernetes == round_dir.cluster.kubernetes


# --- free


def freed(round_dir: RoundDir, run: str = "run-1") -> tuple[bool, list[str]]:
    said: list[str] = []
    return free(round_dir.spec, round_dir.cluster, run, said.append, round_dir.path), said


def there(round_dir: RoundDir, run: str, *conditions: str) -> None:
    Cluster.values = {"round": {"name": NAME, "digest": round_dir.spec.digest}}
    Cluster.make(run)
    for one in conditions:
        Cluster.ends(one)


def test_a_run_takes_its_job_off(round_dir: RoundDir) -> None:
    there(round_dir, "run-1")
    done, said = freed(round_dir)
    assert (done, Cluster.job, Cluster.values) == (True, None, None)
    assert "goes on from its last checkpoint" in said[0]
    assert freed(round_dir) == (False, [])


@pytest.mark.parametrize(
    ("run", "conditions", "line"),
    [
        ("run-2", (), "PyTorchJob r1 is of run run-2: it stays"),
        ("", (), "PyTorchJob r1 is of no run: it stays"),
        ("run-1", ("Succeeded",), ""),
        ("run-1", ("Failed",), ""),
    ],
)
def test_what_stays(round_dir: RoundDir, run: str, conditions: tuple[str, ...], line: str) -> None:
    there(round_dir, run, *conditions)
    done, said = freed(round_dir)
    assert (done, Cluster.job is not None, Cluster.values is not None) == (False, True, True)
    assert "".join(said) == line


@pytest.mark.parametrize(("run", "gone"), [("run-1", True), ("run-2", False)])
def test_a_step_that_was_killed_before_its_name_was_on_the_job(round_dir: RoundDir, run: str, gone: bool) -> None:
    """Between Helm's install and the label: the job is of the run that was asking for it, and of no other."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> bool:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(job_module, "_own", killed)
        train(round_dir)
    assert label() is None
    done, said = freed(round_dir, run)
    assert (done, Cluster.job is None) == (gone, gone)
    assert gone or "is of no run: it stays" in said[0]


def test_there_is_nothing_to_take_off(round_dir: RoundDir) -> None:
    assert freed(round_dir) == (False, [])
    elsewhere = round_dir.cluster.model_copy(update={"kubernetes": None})
    assert not free(round_dir.spec, elsewhere, "run-1", print)


def test_a_taking_off_that_was_killed_is_finished(round_dir: RoundDir) -> None:
    there(round_dir, FREED)
    assert freed(round_dir)[0]


@pytest.mark.parametrize("guarded", [True, False])
def test_a_job_that_another_run_adopts_at_this_very_moment_stays(
    round_dir: RoundDir, guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the patch. Planted: a patch that does not say what it has seen takes it off."""
    there(round_dir, "run-1")

    def adopted() -> None:
        Cluster.on_patch = staticmethod(lambda: None)
        Cluster.write(metadata={"labels": {RUN: "run-2"}})

    Cluster.on_patch = staticmethod(adopted)
    if not guarded:
        seen = Api.patch

        def careless(self: Api, path: str, job: dict[str, Any], change: dict[str, Any]) -> None:
            seen(self, path, merged(job, {"metadata": {"resourceVersion": str(Cluster.written + 2)}}), change)

        monkeypatch.setattr(Api, "patch", careless)
    done, _ = freed(round_dir)
    assert done is not guarded
    assert (Cluster.job is not None) is guarded


def test_who_comes_while_a_job_is_taken_off_waits_and_starts_anew(round_dir: RoundDir) -> None:
    there(round_dir, FREED)
    finishing(round_dir, at=8)
    said = train(round_dir, "run-2")
    assert any("another run takes r1 off the cluster" in line for line in said)
    assert (Cluster.made, label()) == (2, "run-2")


@pytest.mark.parametrize(
    ("run", "written"),
    [
        ("9f0c61e4-0c55-4a2f-8d35-b1a44e0d9a39", "9f0c61e4-0c55-4a2f-8d35-b1a44e0d9a39"),
        ("caspi round/2026", "caspi-round-2026"),
        ("-x" * 50 + "-", "x" + "-x" * 30),
    ],
)
def test_a_run_is_a_label(run: str, written: str) -> None:
    assert job_module._label(run) == written
