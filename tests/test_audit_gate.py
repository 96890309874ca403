"""The gate: every boundary of the decision, and nothing gets past it without a right to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caspi.audit.gate import approve, audit_inputs, check_gate, decide
from caspi.errors import GateRefused, UserError
from caspi.files import file_digest, read_json, write_json
from caspi.records.record import Circumstances, Record, write_record
from caspi.records.results import AuditResults, Estimate
from caspi.records.round_dir import RoundDir, create
from caspi.scoring.significance import share_estimate
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.spec.data import AuditSpec

LIMITS = AuditSpec.model_validate(
    {
        "sample": {"share": "10%", "at_least": 100},
        "proceed": {"low_quality": "10%", "any_domain": "15%"},
        "caution": {"low_quality": "15%", "any_domain": "20%"},
    }
)


def upto(high: float) -> Estimate:
    return Estimate(value=high / 2, low=0.0, high=high)


@pytest.mark.parametrize(
    ("low_quality", "domain", "decision"),
    [
        (0.0, 0.0, "PROCEED"),
        (0.0999, 0.1499, "PROCEED"),
        (0.10, 0.0, "CAUTION"),
        (0.0, 0.15, "CAUTION"),
        (0.15, 0.20, "CAUTION"),
        (0.1501, 0.0, "STOP"),
        (0.0, 0.2001, "STOP"),
        (0.05, 0.9, "STOP"),
        (1.0, 1.0, "STOP"),
        (float("nan"), 0.0, "STOP"),
        (0.0, float("nan"), "STOP"),
    ],
)
def test_each_boundary(low_quality: float, domain: float, decision: str) -> None:
    found = decide(LIMITS, upto(low_quality), {"phone": upto(0.0), "studio": upto(domain)}, 100, 1000)
    assert found.decision == decision
    assert found.reasons
    assert all("%" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("sampled", "utterances", "decision"),
    [
        (100, 1000, "PROCEED"),
        (99, 1000, "STOP"),
        (0, 1000, "STOP"),
        (40, 40, "PROCEED"),
        (39, 40, "STOP"),
        (0, 0, "STOP"),
    ],
)
def test_too_few_samples_stop(sampled: int, utterances: int, decision: str) -> None:
    assert decide(LIMITS, upto(0.01), {"phone": upto(0.01)}, sampled, utterances).decision == decision


def test_a_check_that_failed_stops() -> None:
    found = decide(LIMITS, upto(0.0), {"phone": upto(0.0)}, 100, 1000, failures=["alignment: no model"])
    assert found.decision == "STOP"
    assert found.reasons[0].startswith("alignment: no model")
    assert decide(LIMITS, upto(0.0), {}, 100, 1000).decision == "STOP"  # no domain was judged


def test_the_upper_end_decides_and_not_the_value() -> None:
    """187 of 2,500, an example of the guides, is 7.5%; 9 of 100 is 9% too, but nobody knows whether it is below 10%."""
    many, few = share_estimate(187, 2500), share_estimate(9, 100)
    assert decide(LIMITS, many, {"phone": many}, 2500, 20_000).decision == "PROCEED"
    assert decide(LIMITS, few, {"phone": upto(0.0)}, 100, 20_000).decision == "STOP"
    assert decide(LIMITS, share_estimate(90, 1000), {"phone": many}, 1000, 20_000).decision == "CAUTION"


def spec_values() -> dict[str, object]:
    return {
        "round": "r1",
        "model": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
        "data": {"sources": [{"name": "crowd", "path": "crowd"}]},
        "train": {"global_batch": 4, "phases": [{"name": "A", "epochs": 1, "rates": {"all": 1e-3}}]},
        "benchmark": {"sets": [{"name": "news", "path": "news"}]},
    }


def record(round_dir: RoundDir, stage: str, **values: object) -> Record:
    return Record.model_validate(
        {
            "stage": stage,
            "status": "succeeded",
            "round": round_dir.spec.round,
            "spec": round_dir.spec.digest,
            "seed": 42,
            "inputs": {},
            "circumstances": Circumstances(started="now", seconds=1, host="here", git=None, versions={}),
            **values,
        }
    )


def write_audit(round_dir: RoundDir, decision: str, **values: object) -> Record:
    export = record(round_dir, "export", inputs={"data": "1"})
    write_record(round_dir.folder("export") / "record.json", export)
    left_out = round_dir.folder("audit") / "left_out.json"
    write_json(left_out, [])
    results = AuditResults(
        decision=decision,  # type: ignore[arg-type]
        reasons=["domain phone: 12.0% of low quality"],
        sampled=100,
        utterances=100,
        low_quality=upto(0.1),
        domains=[],
        findings={},
        left_out=0,
    ).model_dump(mode="json")
    audit = record(
        round_dir,
        "audit",
        **{
            "inputs": audit_inputs(export),
            "outputs": {"left_out.json": file_digest(left_out)},
            "results": results,
            **values,
        },
    )
    write_record(round_dir.folder("audit") / "record.json", audit)
    return audit


@pytest.fixture
def round_dir(tmp_path: Path) -> RoundDir:
    return create(tmp_path / "runs", parse(spec_values(), RoundSpec, "r1.yaml"), ClusterSpec(), tmp_path)


def refusal(round_dir: RoundDir) -> str:
    with pytest.raises(GateRefused) as caught:
        check_gate(round_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_proceed_passes(round_dir: RoundDir) -> None:
    write_audit(round_dir, "PROCEED")
    check_gate(round_dir)
    with pytest.raises(UserError, match="nothing needs an approval"):
        approve(round_dir, "Dana", "looked")


def test_stop_never_passes(round_dir: RoundDir) -> None:
    audit = write_audit(round_dir, "STOP")
    with pytest.raises(GateRefused, match="can't be approved"):
        approve(round_dir, "Dana", "we need it")
    write_json(round_dir.folder("audit") / "approval.json", {"audit": audit.digest, "by": "D", "reason": "r"})
    assert "STOP" in refusal(round_dir)


def test_caution_needs_an_approval(round_dir: RoundDir) -> None:
    audit = write_audit(round_dir, "CAUTION")
    assert "caspi approve" in refusal(round_dir)
    path = approve(round_dir, "Dana", "phone calls are like that")
    assert read_json(path)["audit"] == audit.digest
    check_gate(round_dir)


@pytest.mark.parametrize(("by", "reason"), [("", "fine"), ("  ", "fine"), ("Dana", ""), ("Dana", "\n")])
def test_an_approval_says_who_and_why(round_dir: RoundDir, by: str, reason: str) -> None:
    write_audit(round_dir, "CAUTION")
    with pytest.raises(UserError, match="is empty"):
        approve(round_dir, by, reason)
    assert not (round_dir.folder("audit") / "approval.json").exists()


def test_an_approval_holds_for_its_audit_alone(round_dir: RoundDir) -> None:
    write_audit(round_dir, "CAUTION")
    approve(round_dir, "Dana", "fine")
    write_audit(
        round_dir, "CAUTION", circumstances=Circumstances(started="later", seconds=2, host="h", git=None, versions={})
    )
    check_gate(round_dir)  # the same audit, run again
    write_audit(round_dir, "CAUTION", seed=43)
    assert "another audit" in refusal(round_dir)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"audit": 1, "by": "D", "reason": "r"}', '{"audit": "DIGEST"}']
)
def test_a_damaged_approval_is_none(round_dir: RoundDir, content: str) -> None:
    audit = write_audit(round_dir, "CAUTION")
    (round_dir.folder("audit") / "approval.json").write_text(content.replace("DIGEST", audit.digest))
    refusal(round_dir)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda d: (d.folder("audit") / "record.json").unlink(), "has no audit"),
        (lambda d: (d.folder("audit") / "record.json").write_text("{"), "not valid JSON"),
        (lambda d: (d.folder("export") / "record.json").unlink(), "another export"),
        (
            lambda d: write_record(d.folder("export") / "record.json", record(d, "export", inputs={"data": "2"})),
            "another export",
        ),
        (lambda d: write_audit(d, "PROCEED", status="failed", error="disk full"), "disk full"),
        (lambda d: write_audit(d, "PROCEED", spec="of another round"), "another export"),
        (lambda d: write_audit(d, "PROCEED", results={"decision": "PROCEED"}), "damaged"),
        (lambda d: (d.folder("audit") / "left_out.json").write_text('["x"]'), "left_out.json"),
        (lambda d: (d.folder("audit") / "left_out.json").unlink(), "left_out.json"),
    ],
    ids=["no audit", "torn", "no export", "other export", "failed", "other spec", "half", "changed list", "no list"],
)
def test_without_a_sound_audit_nothing_passes(round_dir: RoundDir, fault: object, says: str) -> None:
    write_audit(round_dir, "PROCEED")
    check_gate(round_dir)
    fault(round_dir)  # type: ignore[operator]
    assert says in refusal(round_dir)


def test_an_unknown_decision_does_not_pass(round_dir: RoundDir) -> None:
    write_audit(round_dir, "PROCEED")
    path = round_dir.folder("audit") / "record.json"
    values = json.loads(path.read_text())
    values["results"]["decision"] = "GO"
    path.write_text(json.dumps(values))
    assert "damaged" in refusal(round_dir)
