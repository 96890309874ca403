"""What the steps of the pipeline do and refuse, one by one; how they end; what they show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import caspi.pipeline.ending as ending
import caspi.pipeline.job as job
from caspi.audit.gate import check_gate
from caspi.errors import CaspiError, Diverged, GateRefused, Preempted, UserError
from caspi.pipeline import steps
from caspi.pipeline.shown import audit_page, compare_page, gate_page
from caspi.records.record import Record
from caspi.records.results import AuditResults, CompareResults, Delta, Estimate, Finding
from caspi.records.round_dir import RoundDir, open_round
from caspi.spec import load_cluster, load_round
from tests.pipeline_work import Work, make_work


def given(work: Work) -> dict[str, str]:
    """The texts that the first step and the last one get."""
    spec = load_round(work.round)
    cluster = load_cluster(work.cluster).model_dump_json()
    return {"round": spec.model_dump_json(), "cluster": cluster, "digest": spec.digest, "runs": str(work.runs)}


def exported(work: Work) -> steps.Done:
    return steps.export(**given(work), dataset=str(work.round.with_name("dataset")))


def audited(work: Work) -> tuple[steps.Done, steps.Done]:
    done = exported(work)
    return done, steps.audit(done.directory, done.digest, str(work.round.with_name("findings.md")))


def gate(work: Work, directory: str, audit: str, *approval: str) -> tuple[str, str, str]:
    """The verdict, the decision, and the page."""
    page, decision = work.round.with_name("gate.md"), work.round.with_name("decision")
    verdict = steps.gate(directory, audit, *(approval or ("", "", "")), str(page), str(decision))
    return verdict, decision.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


def code_of(call: object, *arguments: object, **named: object) -> int:
    """The exit code of a step that refuses."""
    with pytest.raises(SystemExit) as ended:
        call(*arguments, **named)  # type: ignore[operator]
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_export_and_audit_leave_records_and_are_not_done_twice(tmp_path: Path) -> None:
    work = make_work(tmp_path, silent=1)
    export, audit = audited(work)
    before = work.written()
    records = work.records()
    assert (export.digest, audit.digest) == (records["export"].digest, records["audit"].digest)
    assert export.directory == str(work.path)
    pointer = Record.model_validate_json((tmp_path / "dataset").read_text(encoding="utf-8"))
    assert pointer == records["export"], "the artifact is the record, not the data"
    assert export.metadata == {
        "round": "small",
        "round_dir": str(work.path),
        "path": str(work.path / "export"),
        "digest": export.digest,
    }
    assert export.metrics["train utterances"] + export.metrics["dev utterances"] == 60
    page = (tmp_path / "findings.md").read_text(encoding="utf-8")
    assert page.startswith("# PROCEED\n") and "| silent |" in page
    assert audited(work) == (export, audit)
    assert work.written() == before
    assert gate(work, export.directory, audit.digest)[:2] == ("pass", "PROCEED")


def test_a_caution_is_signed_for_the_audit_that_was_read_and_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = make_work(tmp_path, silent=6)
    export, audit = audited(work)
    place, sha = export.directory, audit.digest
    approval = work.path / "audit" / "approval.json"

    verdict, decision, page = gate(work, place, sha)
    assert (verdict, decision) == ("refuse", "CAUTION")
    assert f"`approve_audit` {sha[:12]}" in page
    assert gate(work, place, sha, "Dana", "known", "0" * 12)[0] == "refuse"
    for number, missing in enumerate(("approve_by", "approve_reason", "approve_audit")):
        signed = ["Dana", "known", sha[:12]]
        signed[number] = " "
        assert code_of(gate, work, place, sha, *signed) == 2
        assert f"{missing}: empty" in capfd.readouterr().err
    assert code_of(gate, work, place, sha, "Dana", "known", sha[:11]) == 2
    assert not approval.exists()

    assert code_of(steps.train, place, sha, "process", "run-1", str(tmp_path / "model")) == 3, "whatever the If said"
    assert gate(work, place, sha, "Dana", "known", sha[:12])[:2] == ("pass", "CAUTION")
    signed_once = approval.read_bytes()
    assert gate(work, place, sha)[0] == "pass", "it is signed"
    assert approval.read_bytes() == signed_once
    check_gate(open_round(work.path))
    assert code_of(gate, work, place, "0" * 64) == 2, "the audit was made anew"


def test_train_refuses_by_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = make_work(tmp_path, silent=30)
    export = exported(work)
    place, model = export.directory, str(tmp_path / "model")
    for train_by in ("process", "helm"):
        assert code_of(steps.train, place, "", train_by, "run-1", model) == 3
        error = capfd.readouterr().err
        assert "the round has no audit" in error and "Traceback" not in error
    audit = steps.audit(place, export.digest, str(tmp_path / "findings.md"))
    assert gate(work, place, audit.digest, "Dana", "hurry", audit.digest[:12])[:2] == ("refuse", "STOP")
    assert code_of(steps.train, place, audit.digest, "process", "run-1", model) == 3
    assert not (work.path / "train").exists()


def test_train_by_helm_asks_the_gate_first_and_names_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = make_work(tmp_path)
    asked: list[str] = []

    def train_by_helm(round_dir: RoundDir, run: str, say: object) -> None:
        asked.append(run)
        raise Diverged("NaN")

    monkeypatch.setattr(job, "train_by_helm", train_by_helm)
    export, audit = audited(work)
    model = str(tmp_path / "model")
    assert code_of(steps.train, export.directory, "0" * 64, "helm", "run-1", model) == 2, "of another audit"
    assert code_of(steps.train, export.directory, audit.digest, "torchrun", "run-1", model) == 2
    assert asked == []
    assert code_of(steps.train, export.directory, audit.digest, "helm", "run-2", model) == 5
    assert code_of(steps.train, export.directory, audit.digest, "helm", "run-2", model) == 5
    assert asked == ["run-2"], "a retry of the same run does not pay for it again"
    assert code_of(steps.train, export.directory, audit.digest, "helm", "run-3", model) == 5
    assert asked == ["run-2", "run-3"]


def test_records_of_another_run_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = make_work(tmp_path)
    export = exported(work)
    other = "f" * 64
    assert code_of(steps.audit, export.directory, other, str(tmp_path / "a.md")) == 2
    assert f"it digests to {export.digest[:12]}, and this step was to read {'f' * 12}" in capfd.readouterr().err
    assert code_of(steps.benchmark, export.directory, export.digest, other) == 2
    assert "stage train has not run" in capfd.readouterr().err
    assert code_of(steps.compare, export.directory, other, str(tmp_path / "c.md")) == 2
    assert code_of(steps.report, export.directory, other, "", str(tmp_path / "page.html")) == 2


def test_bad_parameters_are_one_line_and_code_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = make_work(tmp_path)
    good, dataset = given(work), str(tmp_path / "dataset")
    assert code_of(steps.export, **good | {"digest": "e" * 64}, dataset=dataset) == 2
    assert "it digests to" in capfd.readouterr().err
    for cluster in ("{}", "data_root: data"):
        assert code_of(steps.export, **good | {"cluster": cluster}, dataset=dataset) == 2
        assert "say in the cluster file from where, for example data_root: /rounds/data" in capfd.readouterr().err
    assert code_of(steps.export, **good | {"round": "round: [", "digest": ""}, dataset=dataset) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not work.runs.exists()


def test_the_last_step_makes_the_page_of_a_round_that_ended_early(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = make_work(tmp_path, silent=30)
    last = {**given(work), "train_by": "process", "run": "run-1", "state": "FAILED"}
    steps.free(**last)
    assert "the run ended as FAILED" in capfd.readouterr().err
    assert not work.runs.exists(), "nothing was begun"
    audited(work)
    steps.free(**last)
    assert "STOP" in (work.path / "report" / "index.html").read_text(encoding="utf-8")


def test_the_last_step_frees_what_its_run_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work = make_work(tmp_path)
    freed: list[str] = []
    monkeypatch.setattr(job, "free", lambda spec, cluster, run, *_: freed.append(f"{spec.round} {run}") is None)
    steps.free(**given(work), train_by="helm", run="run-1", state="CANCELLED")
    assert freed == ["small run-1"]
    assert "its GPUs are free" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Diverged("NaN"), True),
        (GateRefused("STOP"), True),
        (UserError("typo"), True),
        (Preempted("later"), False),
        (CaspiError("odd"), False),
    ],
)
def test_what_would_only_fail_again_is_not_tried_again(tmp_path: Path, error: CaspiError, again: bool) -> None:
    def attempt(run: str, fails: bool = True) -> bool:
        """Whether the work was begun."""
        begun = False
        try:
            with ending.remembered(tmp_path, run, "train"):
                begun = True
                if fails:
                    raise error
        except CaspiError as ended:
            assert ended.exit_code == error.exit_code
            assert str(error) in str(ended)
        return begun

    assert attempt("one")
    assert attempt("one") is not again
    assert attempt("two"), "another run is another decision"
    path = tmp_path / ".pipeline" / "train.json"
    if again:
        known = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(known | {"at": known["at"] - ending.HOLDS_SECONDS}), encoding="utf-8")
        assert attempt("two"), "somebody mended it, and pressed Retry"
        path.write_text("torn {", encoding="utf-8")
    assert attempt("two", fails=False)
    assert not path.exists()


def test_a_step_ends_with_whoever_reads_it() -> None:
    """kfp.local is killed: its shell and the step would go on. The step of the same program without a reader's end."""
    program = "import time\nfrom caspi.pipeline.ending import one_line\n"
    program += "with one_line():\n print('on', flush=True)\n time.sleep(60)"
    step = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert step.stdout is not None and step.stdout.readline() == b"on\n"
    time.sleep(0.3)
    assert step.poll() is None, "it goes on while somebody reads"
    step.stdout.close()
    assert step.wait(timeout=30) == -9


def test_a_step_whose_output_is_a_file_goes_on(tmp_path: Path) -> None:
    program = "from caspi.pipeline.ending import one_line\nwith one_line(): print('on')"
    with (tmp_path / "log").open("wb") as log:
        done = subprocess.run([sys.executable, "-c", program], stdout=log, check=False, env=os.environ)
    assert done.returncode == 0


def test_pages_show_no_markup_of_the_data() -> None:
    share = Estimate(value=0.1, low=0.05, high=0.2)
    audit = AuditResults(
        decision="CAUTION",
        reasons=["domain <b>: high"],
        sampled=9,
        utterances=10,
        low_quality=share,
        domains=[],
        findings={"silent": 60},
        left_out=1,
    )
    bad = Finding(
        utterance="a/1",
        check="silent",
        detail="peak | -62",
        domain="d",
        source="a",
        text="<script>alert(1)</script>\n| x",
        audio="1.wav",
    )
    page = audit_page(audit, [bad] * 60)
    assert "<script" not in page and "<b>" not in page
    assert page.count("| silent | a/1 | peak \\| -62 |") == 50
    assert "the first 50 of 60" in page
    assert "`approve_audit` abcdefabcdef" in gate_page(audit, "abcdef" * 11, "the audit says CAUTION")
    assert "training may start" in gate_page(audit, "abcdef" * 11, "")
    delta = Delta(
        group="all",
        profile="hebrew-fair",
        utterances=9,
        baseline_wer=0.5,
        candidate_wer=0.4,
        difference=Estimate(value=-0.1, low=-0.2, high=-0.05),
        relative=-0.2,
    )
    compared = CompareResults(baseline="r1", candidate="r2", deltas=[delta], verdict="better", sentence="r2 is better")
    assert "| all | hebrew-fair | 9 | 0.500 | 0.400 | -10.0 points (-20.0 to -5.0) |" in compare_page(compared)
