"""Report: one HTML page of everything that a round did, made from its records."""

from __future__ import annotations

from caspi.errors import UserError
from caspi.files import file_digest
from caspi.records.record import STAGES, StageName
from caspi.records.results import ReportResults
from caspi.records.round_dir import RoundDir
from caspi.report.render import version, write_report
from caspi.stages.stage import Outcome, Stage


def inputs(round_dir: RoundDir) -> dict[str, str]:
    """Every record that there is, whatever became of its stage: a report of a failed round is still one."""
    read = {"report": version()}
    for stage in STAGES:
        if stage != "report":
            read |= _record(round_dir, stage, stage)
    try:
        parent = round_dir.parent()
    except UserError:
        parent = None
    if parent is not None:
        read |= _record(parent, "benchmark", f"{parent.spec.round}/benchmark")
    return read


def work(round_dir: RoundDir) -> Outcome:
    page = write_report(round_dir)
    return Outcome(
        results=ReportResults(
            verdict=page.verdict.sentence,
            predictions=page.shown,
            clips=sum(clips.embedded for clips in page.clips),
        ),
        shown=["index.html"],
    )


def _record(round_dir: RoundDir, stage: StageName, name: str) -> dict[str, str]:
    """The digest of a record, or of its bytes when it is damaged; nothing without one."""
    path = round_dir.folder(stage) / "record.json"
    if not path.exists():
        return {}
    try:
        record = round_dir.record(stage)
    except UserError:
        return {name: file_digest(path)}
    assert record is not None
    return {name: record.digest}


STAGE = Stage(name="report", inputs=inputs, work=work)
