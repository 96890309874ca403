"""From the audit's estimates to PROCEED, CAUTION or STOP, and the gate that training passes. It fails closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from caspi.errors import GateRefused, UserError
from caspi.files import file_digest, read_json, write_json
from caspi.records.record import Record
from caspi.records.results import AuditResults, Estimate
from caspi.records.round_dir import RoundDir
from caspi.spec.data import AuditSpec


@dataclass(frozen=True, slots=True)
class Decision:
    """What the audit says about spending GPU time, and why, in lines for people."""

    decision: Literal["PROCEED", "CAUTION", "STOP"]
    reasons: list[str]


def decide(
    audit: AuditSpec,
    low_quality: Estimate,
    domains: Mapping[str, Estimate],
    sampled: int,
    utterances: int,
    failures: Sequence[str] = (),
) -> Decision:
    """The decision on data with these shares of low quality, judged by the upper ends of their 95% intervals.

    PROCEED when all lie below `audit.proceed`; CAUTION when none lies above `audit.caution`; STOP otherwise, and
    when too few of the `utterances` were sampled or a check failed to run. What can't be compared never passes.
    """
    blockers = [f"{failure}: a check that did not run vouches for nothing" for failure in failures]
    needed = min(audit.sample.at_least, utterances)
    if not utterances:
        blockers.append("nothing is left to train on")
    elif sampled < needed or not domains:
        blockers.append(f"only {sampled} utterances were sampled; {max(1, needed)} are needed to judge")
    if blockers:
        return Decision("STOP", blockers)

    shares = [("", low_quality, audit.proceed.low_quality, audit.caution.low_quality)]
    shares += [(name, share, audit.proceed.any_domain, audit.caution.any_domain) for name, share in domains.items()]
    if all(share.high < proceed for _, share, proceed, _ in shares):
        worst = max(domains, key=lambda name: domains[name].high)
        return Decision(
            "PROCEED",
            [
                f"{_subject(name)}: {_shown(share)} of low quality, below {_percent(proceed)}"
                for name, share, proceed, _ in shares
                if name in ("", worst)
            ],
        )
    stops = [
        f"{_subject(name)}: {_shown(share)} of low quality, above {_percent(caution)}"
        for name, share, _, caution in shares
        if not share.high <= caution
    ]
    if stops:
        return Decision("STOP", stops)
    return Decision(
        "CAUTION",
        [
            f"{_subject(name)}: {_shown(share)} of low quality, not below {_percent(proceed)} "
            f"but at most {_percent(caution)}"
            for name, share, proceed, caution in shares
            if not share.high < proceed
        ],
    )


def check_gate(round_dir: RoundDir, sign: str | None = None) -> None:
    """Pass when training may start; otherwise GateRefused says why, and the way on: `sign` is the command that signs
    a CAUTION here."""
    record, results = _audit(round_dir)
    if results.decision == "PROCEED":
        return
    why = f"the audit says {results.decision}: {'; '.join(results.reasons)}"
    if results.decision == "STOP":
        raise GateRefused(f"{why}; mend the data, or leave out what audit/findings.jsonl names (audit.leave_out)")
    path = _approval(round_dir)
    way_on = (
        f"""look at the findings, then run `{sign or f'caspi approve {round_dir.path} --by NAME --reason "..."'}`"""
    )
    if not path.exists():
        raise GateRefused(f"{why}; {way_on}")
    if problem := _approval_problem(path, record):
        raise GateRefused(f"{path}: {problem}; {way_on}")


def approve(round_dir: RoundDir, by: str, reason: str) -> Path:
    """Sign a CAUTION: writes audit/approval.json, which holds for this very audit and no other."""
    for name, value in (("by", by), ("reason", reason)):
        if not value.strip():
            raise UserError(f"--{name} is empty: an approval says who decided, and why")
    record, results = _audit(round_dir)
    if results.decision == "STOP":
        raise GateRefused(f"the audit says STOP, which can't be approved: {'; '.join(results.reasons)}")
    if results.decision == "PROCEED":
        raise UserError("the audit says PROCEED: nothing needs an approval", where=str(round_dir.path))
    path = _approval(round_dir)
    write_json(
        path,
        {
            "audit": record.digest,
            "by": by.strip(),
            "reason": reason.strip(),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )
    return path


def _approval(round_dir: RoundDir) -> Path:
    return round_dir.folder("audit") / "approval.json"


def _approval_problem(path: Path, record: Record) -> str | None:
    """Why the approval does not hold; None when it does."""
    try:
        approval: Any = read_json(path)
    except UserError:
        return "is damaged"
    if not isinstance(approval, dict) or not all(
        isinstance(approval.get(name), str) and approval[name].strip() for name in ("audit", "by", "reason")
    ):
        return "does not say who approved which audit, and why"
    return None if approval["audit"] == record.digest else "approves another audit than the last one"


def _audit(round_dir: RoundDir) -> tuple[Record, AuditResults]:
    """The audit of exactly this round and this export; GateRefused when there is none."""
    again = f"run `caspi stage audit --round-dir {round_dir.path}`"
    try:
        record = round_dir.record("audit")
        export = round_dir.record("export")
    except UserError as error:
        raise GateRefused(f"{error}; without an audit nothing is trained") from None
    if record is None:
        raise GateRefused(f"the round has no audit; {again}")
    if record.status != "succeeded":
        raise GateRefused(f"the audit failed ({record.error}); {again}")
    if export is None or record.spec != round_dir.spec.digest or record.inputs != audit_inputs(export):
        raise GateRefused(f"the audit is of another export than this round's; {again}")
    changed = [name for name, sha in record.outputs.items() if _digest(round_dir.folder("audit") / name) != sha]
    if changed:
        raise GateRefused(f"audit/{changed[0]} is not what the audit wrote; delete audit/record.json and {again}")
    try:
        return record, AuditResults.model_validate(record.results)
    except ValidationError:
        raise GateRefused(f"the audit's record is damaged; delete it and {again}") from None


def _digest(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def audit_inputs(export: Record) -> dict[str, str]:
    """What decides an audit: the export with its spec and its sources, which its record pins."""
    return {"export": export.digest}


def _shown(share: Estimate) -> str:
    if share.low == share.high:
        return f"{_percent(share.value)}"
    return f"{_percent(share.value)} (95%: {_percent(share.low)} to {_percent(share.high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _subject(name: str) -> str:
    return f"domain {name}" if name else "the training data"
