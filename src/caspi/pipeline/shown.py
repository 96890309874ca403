"""What the steps show in the pipeline's page: Markdown and metrics, from records."""

from __future__ import annotations

from collections.abc import Iterable

from caspi.records.record import Record
from caspi.records.results import (
    AuditResults,
    BenchmarkResults,
    CompareResults,
    Estimate,
    ExportResults,
    Finding,
    TrainResults,
)

FINDINGS = 50
"""Rows of a table for people; audit/findings.jsonl has all."""


def metrics(record: Record) -> dict[str, float]:
    """Figures of a stage, by the names that two runs are compared under."""
    values = record.results
    match record.stage:
        case "export":
            export = ExportResults.model_validate(values)
            return {"train utterances": export.train, "train hours": export.train_hours, "dev utterances": export.eval}
        case "audit":
            audit = AuditResults.model_validate(values)
            share = {"low quality": audit.low_quality.value, "low quality, 95% high": audit.low_quality.high}
            return share | {"left out": audit.left_out} | dict(audit.findings)
        case "train":
            train = TrainResults.model_validate(values)
            return {"dev WER": train.chosen_wer, "chosen step": train.chosen_step, "steps": train.steps}
        case "benchmark":
            scores = BenchmarkResults.model_validate(values)
            rates = {f"{one.group} {one.profile}": one for one in scores.scores}
            wer = {f"WER {name}": one.wer.value for name, one in rates.items()}
            cer = {f"CER {name}": one.cer.value for name, one in rates.items()}
            return wer | cer | {"loops": scores.loops, "empty": scores.empty}
        case "compare":
            found = CompareResults.model_validate(values)
            return {f"WER {one.group} {one.profile}, difference": one.difference.value for one in found.deltas}
        case "report":
            return {}


def audit_page(audit: AuditResults, findings: Iterable[Finding]) -> str:
    """The decision, the domains, and the first findings."""
    lines = [f"# {audit.decision}", "", *(f"- {_cell(reason)}" for reason in audit.reasons), ""]
    lines += [
        f"{audit.sampled:,} of {audit.utterances:,} utterances were listened to; {audit.left_out:,} are left out of "
        "training.",
        "",
        "| domain | utterances | sampled | low quality (95%) |",
        "|---|---:|---:|---|",
    ]
    lines += [
        f"| {_cell(one.domain)} | {one.utterances:,} | {one.sampled:,} | {_share(one.low_quality)} |"
        for one in audit.domains
    ]
    shown = [one for _, one in zip(range(FINDINGS), findings, strict=False)]
    if shown:
        total = sum(audit.findings.values())
        more = f", the first {len(shown)} of {total:,}" if total > len(shown) else ""
        lines += ["", f"## Findings{more}", "", "| check | utterance | what | text |", "|---|---|---|---|"]
        lines += [
            f"| {one.check} | {_cell(one.utterance)} | {_cell(one.detail)} | {_cell(one.text)} |" for one in shown
        ]
    return "\n".join(lines) + "\n"


def gate_page(audit: AuditResults, digest: str, refused: str) -> str:
    """Whether training may start; if not, how it could."""
    head = f"# {audit.decision}: {'training does not start' if refused else 'training may start'}"
    lines = [head, "", *(f"- {_cell(reason)}" for reason in audit.reasons)]
    if refused:
        lines += ["", _cell(refused)]
    if refused and audit.decision == "CAUTION":
        lines += [
            "",
            f"Of a run of the pipeline these are the parameters that sign it: `approve_audit` {digest[:12]}, ",
        ]
        lines[-1] += "with `approve_by` and `approve_reason`."
    return "\n".join(lines) + "\n"


def compare_page(found: CompareResults) -> str:
    """The verdict and the differences behind it."""
    lines = [
        f"# {found.verdict}",
        "",
        _cell(found.sentence),
        "",
        f"| group | profile | utterances | WER {found.baseline} | WER {found.candidate} | difference (95%) |",
        "|---|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {_cell(one.group)} | {one.profile} | {one.utterances:,} | {one.baseline_wer:.3f} | {one.candidate_wer:.3f} "
        f"| {100 * one.difference.value:+.1f} points ({100 * one.difference.low:+.1f} to "
        f"{100 * one.difference.high:+.1f}) |"
        for one in found.deltas
    ]
    return "\n".join(lines) + "\n"


def _share(share: Estimate) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def _cell(text: str) -> str:
    """One line that no text of a data set turns into markup: the page is shown in a browser."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
