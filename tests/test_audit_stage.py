"""The audit of real files with planted faults: what was planted is found, and nothing else."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from caspi.errors import UserError
from caspi.files import read_json, read_json_lines
from caspi.records.results import AuditResults
from caspi.records.round_dir import RoundDir, create
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.stages import audit, export
from caspi.stages.stage import perform

DEMO = Path(__file__).parent.parent / "demo"
SHARD = "train-*.parquet"

FOUND_AS = {
    "silent": {"silent"},
    "quiet": {"quiet"},
    "clipped": {"clipped"},
    "text_too_short": {"text_rate"},
    "leaked": {"leaked"},
    "leaked_reencoded": {"leaked"},
    "conflicting_text": {"conflicting_text"},
}
"""What each planted fault must be found as. Copies depend on what their text became, and are looked at below."""


def spec(**audit_values: Any) -> RoundSpec:
    values = {
        "round": "r1",
        "model": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
        "data": {
            "sources": [{"name": "crowd", "path": "crowd", "files": SHARD, "domain": "phone"}],
            "text": "hebrew-2",
            "keep": {"seconds": [0.4, 12], "characters_per_second": [1, 30]},
            "split": {"by": ["recording", "text"], "eval": "8%"},
        },
        "audit": {
            "sample": {"share": "100%", "at_least": 1},
            "proceed": {"low_quality": "5%", "any_domain": "5%"},
            "caution": {"low_quality": "30%", "any_domain": "30%"},
            **audit_values,
        },
        "train": {"global_batch": 4, "phases": [{"name": "A", "epochs": 1, "rates": {"all": 1e-3}}]},
        "benchmark": {
            "sets": [
                {"name": "clean", "path": "test", "files": "clean*.parquet", "domain": "studio"},
                {"name": "phone", "path": "test", "files": "phone*.parquet", "domain": "phone"},
            ]
        },
    }
    return parse(values, RoundSpec, "r1.yaml")


def audited(runs: Path, **audit_values: Any) -> RoundDir:
    round_dir = create(runs, spec(**audit_values), ClusterSpec(), DEMO)
    perform(export.STAGE, round_dir)
    perform(audit.STAGE, round_dir)
    return round_dir


def results(round_dir: RoundDir) -> AuditResults:
    return AuditResults.model_validate(round_dir.succeeded("audit").results)


def findings(round_dir: RoundDir) -> dict[str, set[str]]:
    """Checks by the audio that they found."""
    found: dict[str, set[str]] = defaultdict(set)
    for finding in read_json_lines(round_dir.folder("audit") / "findings.jsonl"):
        found[finding["audio"]].add(finding["check"])
    return found


def manifest(round_dir: RoundDir, name: str = "train.jsonl") -> list[dict[str, Any]]:
    return list(read_json_lines(round_dir.folder("export") / name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RoundDir:
    return audited(tmp_path_factory.mktemp("runs"), leave_out=["leaked", "duplicate", "silent"])


@pytest.fixture(scope="module")
def faults(whole: RoundDir) -> dict[str, dict[str, str]]:
    """The planted faults among what is trained on."""
    trained = {one["audio"] for one in manifest(whole)}
    planted = json.loads((DEMO / "faults.json").read_text(encoding="utf-8"))
    return {fault["audio"]: fault for fault in planted if fault["audio"] in trained}


def test_each_planted_fault_is_found(whole: RoundDir, faults: dict[str, dict[str, str]]) -> None:
    found = findings(whole)
    missed = {
        audio: fault["kind"]
        for audio, fault in faults.items()
        if not FOUND_AS.get(fault["kind"], set()) <= found.get(audio, set())
    }
    assert not missed
    assert len({fault["kind"] for fault in faults.values()} & FOUND_AS.keys()) >= 5


def test_copies_are_found_even_encoded_anew(whole: RoundDir, faults: dict[str, dict[str, str]]) -> None:
    found = findings(whole)
    trained = {one["audio"] for one in manifest(whole)}
    pairs = [fault for fault in faults.values() if fault["kind"].startswith("duplicate") and fault["of"] in trained]
    assert {fault["kind"] for fault in pairs} == {"duplicate", "duplicate_reencoded"}
    for fault in pairs:
        assert (found[fault["audio"]] | found[fault["of"]]) & {"duplicate", "conflicting_text"}


def test_sound_utterances_are_left_in_peace(whole: RoundDir, faults: dict[str, dict[str, str]]) -> None:
    copied = {fault["of"] for fault in faults.values() if "of" in fault}
    wrong = {audio: checks for audio, checks in findings(whole).items() if audio not in faults.keys() | copied}
    assert wrong == {}


def test_what_is_left_out(whole: RoundDir) -> None:
    left_out = read_json(whole.folder("audit") / "left_out.json")
    audio = {one["id"]: one["audio"] for one in manifest(whole)}
    found = findings(whole)
    assert left_out == sorted(left_out)
    assert {audio[name] for name in left_out} == {
        one for one, checks in found.items() if checks & {"leaked", "duplicate", "silent"}
    }
    assert results(whole).left_out == len(left_out)


def test_the_decision_is_on_what_is_trained_on(whole: RoundDir) -> None:
    found = results(whole)
    kept = len(manifest(whole)) - found.left_out
    low = [checks for checks in findings(whole).values() if not checks & {"leaked", "duplicate", "silent"}]
    assert found.low_quality.value == found.low_quality.high == pytest.approx(len(low) / kept)
    assert found.decision == "CAUTION"
    assert found.alignment == "not run"
    assert any("are left out (leaked, duplicate, silent); before, " in reason for reason in found.reasons)
    assert [domain.domain for domain in found.domains] == ["phone"]
    assert found.domains[0].utterances == found.utterances == found.sampled == len(manifest(whole))


def test_two_processes_write_the_same_bytes(whole: RoundDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = whole.succeeded("audit")
    (whole.folder("audit") / "record.json").unlink()
    monkeypatch.setattr("caspi.audit.listening.SERIAL", 300)
    monkeypatch.setattr("caspi.audit.listening.cores", lambda: 2)
    again, done = perform(audit.STAGE, whole)
    assert done
    assert again.outputs == before.outputs
    assert again.digest == before.digest


def test_a_large_corpus_is_not_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "FINGERPRINT_ALL", 0)
    round_dir = audited(tmp_path, sample={"share": "20%", "at_least": 1}, leave_out=[])
    found = results(round_dir)
    everything = found.utterances + sum(len(manifest(round_dir, f"sets/{name}.jsonl")) for name in ("clean", "phone"))
    assert found.sampled < found.utterances / 2
    assert found.fingerprinted < everything / 2
    assert found.low_quality.low < found.low_quality.value < found.low_quality.high
    planted = json.loads((DEMO / "faults.json").read_text(encoding="utf-8"))
    trained = {one["audio"] for one in manifest(round_dir)}
    leaked = {fault["audio"] for fault in planted if fault["kind"] == "leaked"} & trained
    assert leaked
    assert all("leaked" in findings(round_dir)[audio] for audio in leaked)  # equal bytes are found in all
    assert any("add leaked to audit.leave_out" in reason for reason in found.reasons)


def test_without_an_export_nothing_is_audited(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage export has not run"):
        perform(audit.STAGE, create(tmp_path, spec(), ClusterSpec(), DEMO))
