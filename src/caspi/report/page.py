"""What the page says: every fact of a round directory, typed, ready for the templates.

A report is most needed when a round went wrong, so nothing here demands that a stage ran or succeeded: what is
missing is said, in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from markupsafe import Markup
from pydantic import ValidationError

from caspi.errors import UserError
from caspi.files import read_json, read_json_lines
from caspi.records.record import Record, StageName, Stored
from caspi.records.results import (
    AuditResults,
    BenchmarkResults,
    CompareResults,
    ExportResults,
    TrainResults,
)
from caspi.records.round_dir import RoundDir
from caspi.report.curves import Chart, Metrics, charts, read_metrics
from caspi.report.diffs import direction, visible
from caspi.report.examples import Group, choose, read_predictions
from caspi.report.formats import percent, typeset
from caspi.report.sound import Clip, Clips, Encoded
from caspi.report.summary import Fact, audit_chart, decisive, facts, headline
from caspi.scoring.profiles import apply

Results = TypeVar("Results", bound=Stored)

FINDINGS_EACH = 3  # examples of each check


@dataclass(frozen=True, slots=True)
class Found(Generic[Results]):
    """A stage as it lies on disk."""

    name: StageName
    state: Literal["done", "failed", "not run", "damaged", "not needed"]
    line: str = ""
    """Why, when it isn't done."""
    record: Record | None = None
    results: Results | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The round in one sentence."""

    tone: Literal["good", "bad", "plain"]
    sentence: str


@dataclass(frozen=True, slots=True)
class FindingExample:
    """One finding that can be listened to."""

    utterance: str
    domain: str
    detail: str
    text: str
    direction: str
    clip: Clip


@dataclass(frozen=True, slots=True)
class Check:
    """What one audit check found."""

    name: str
    meaning: str
    count: int
    examples: Sequence[FindingExample]


@dataclass(frozen=True, slots=True)
class Page:
    """All that the templates need."""

    round: RoundDir
    parent: str | None
    parent_line: str
    """Why the parent's figures are missing, when they are."""
    export: Found[ExportResults]
    audit: Found[AuditResults]
    train: Found[TrainResults]
    benchmark: Found[BenchmarkResults]
    compare: Found[CompareResults]
    baseline: BenchmarkResults | None
    verdict: Verdict
    facts: Sequence[Fact]
    headline: Markup
    approval: Mapping[str, Any] | None
    checks: Sequence[Check]
    audit_chart: Markup
    metrics: Metrics
    curves: Sequence[Chart]
    groups: Sequence[Group]
    predictions: int
    examples_line: str
    clips: Sequence[Clips]
    spec_text: str

    @property
    def stages(self) -> list[Found[Any]]:
        return [self.export, self.audit, self.train, self.benchmark, self.compare]

    @property
    def shown(self) -> int:
        """Predictions on the page."""
        return sum(len(group.examples) for group in self.groups)

    @property
    def problems(self) -> list[Found[Any]]:
        return [stage for stage in self.stages if stage.state in ("failed", "damaged")]

    @property
    def records(self) -> list[Record]:
        return [stage.record for stage in self.stages if stage.record is not None]


def gather(round_dir: RoundDir, encoded: Encoded) -> Page:
    """Read everything that the page shows. `encoded` reads clips."""
    spec = round_dir.spec
    export = find(round_dir, "export", ExportResults)
    audit = find(round_dir, "audit", AuditResults)
    train = find(round_dir, "train", TrainResults)
    benchmark = find(round_dir, "benchmark", BenchmarkResults)
    compare = find(round_dir, "compare", CompareResults)
    if not spec.parent:
        compare = replace(compare, state="not needed")
    parent, parent_line = _parent(round_dir)
    before = find(parent, "benchmark", BenchmarkResults) if parent else None
    clips = Clips(encoded)
    heard = clips.reserve(0.65)
    groups, predictions, examples_line = _examples(round_dir, parent, heard)
    metrics = read_metrics(round_dir.folder("train") / "metrics.jsonl")
    baseline = before.results if before else None
    return Page(
        round=round_dir,
        parent=spec.parent,
        parent_line=parent_line,
        export=export,
        audit=audit,
        train=train,
        benchmark=benchmark,
        compare=compare,
        baseline=baseline,
        verdict=_verdict(spec.round, [export, audit, train, benchmark, compare]),
        facts=facts(
            spec,
            round_dir.cluster,
            export.results,
            audit.results,
            train.results,
            train.record,
            benchmark.results,
            compare.results,
        ),
        headline=headline(spec, benchmark.results, baseline),
        approval=_approval(round_dir, audit.record),
        checks=_checks(round_dir, audit.results, clips),
        audit_chart=audit_chart(spec.audit, audit.results),
        metrics=metrics,
        curves=charts(metrics, train.results),
        groups=groups,
        predictions=predictions,
        examples_line=examples_line,
        clips=[heard, clips],
        spec_text=(round_dir.path / "round.yaml").read_text(encoding="utf-8"),
    )


def find(round_dir: RoundDir, stage: StageName, kind: type[Results]) -> Found[Results]:
    """A stage's record and results; a damaged file is a state, not an exception."""
    try:
        record = round_dir.record(stage)
    except UserError as error:
        return Found(stage, "damaged", str(error).splitlines()[0])
    if record is None:
        return Found(stage, "not run")
    if record.status == "failed":
        return Found(stage, "failed", record.error or "it doesn't say why", record)
    try:
        return Found(stage, "done", "", record, kind.model_validate(record.results))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        return Found(stage, "damaged", f"record.json: results.{place}: {error.errors()[0]['msg']}", record)


def _parent(round_dir: RoundDir) -> tuple[RoundDir | None, str]:
    try:
        return round_dir.parent(), ""
    except UserError as error:
        return None, str(error).splitlines()[0]


def _verdict(name: str, stages: Sequence[Found[Any]]) -> Verdict:
    broken = next((stage for stage in stages if stage.state in ("failed", "damaged")), None)
    if broken is not None:
        what = "failed" if broken.state == "failed" else "has a damaged record"
        return Verdict("bad", f"{name} isn't finished: {broken.name} {what}.")
    audit, train, benchmark, compare = stages[1:]
    if compare.results:
        tone: Any = {"better": "good", "worse": "bad"}.get(compare.results.verdict, "plain")
        return Verdict(tone, typeset(compare.results.sentence))
    if benchmark.results:
        score = decisive(benchmark.results.scores)
        if score:
            return Verdict(
                "plain",
                f"{name} reaches a WER of {percent(score.wer.value)} (95%: {percent(score.wer.low)} to "
                f"{percent(score.wer.high)}) on {score.utterances:,} unseen utterances.",
            )
    if train.results:
        return Verdict("plain", f"{name} is trained and not benchmarked yet.")
    if audit.results and audit.results.decision == "STOP":
        return Verdict("bad", f"The audit stops {name}: its data isn't worth training on as it is.")
    done = [stage.name for stage in stages if stage.state == "done"]
    return Verdict("plain", f"{name} has got as far as the {done[-1]}." if done else f"{name} hasn't run yet.")


def _approval(round_dir: RoundDir, audit: Record | None) -> Mapping[str, Any] | None:
    """Who signed this very audit; an approval of another one is none."""
    try:
        approval = read_json(round_dir.folder("audit") / "approval.json")
    except UserError:
        return None
    signed = isinstance(approval, dict) and audit is not None and approval.get("audit") == audit.digest
    return approval if signed else None


MEANINGS = {
    "undecodable": "the audio can't be read",
    "silent": "no speech to hear",
    "clipped": "the recording is cut off at full scale",
    "quiet": "far below the usual level",
    "text_rate": "more or fewer characters a second than anyone speaks",
    "conflicting_text": "the same audio with another text",
    "duplicate": "the same audio and text more than once",
    "leaked": "also in dev or in a test set",
}


def _checks(round_dir: RoundDir, audit: AuditResults | None, clips: Clips) -> list[Check]:
    if audit is None:
        return []
    examples: dict[str, list[Mapping[str, Any]]] = {}
    try:
        for line in read_json_lines(round_dir.folder("audit") / "findings.jsonl"):
            same = examples.setdefault(str(line.get("check")), [])
            if len(same) < FINDINGS_EACH:
                same.append(line)
    except UserError:
        pass  # the counts stand in the record; examples are an extra
    names = sorted(audit.findings, key=lambda name: (-audit.findings[name], name))
    return [
        Check(
            name=name,
            meaning=MEANINGS.get(name, ""),
            count=audit.findings[name],
            examples=[_finding(line, clips) for line in examples.get(name, [])],
        )
        for name in names
    ]


def _finding(line: Mapping[str, Any], clips: Clips) -> FindingExample:
    text = str(line.get("text", ""))
    return FindingExample(
        utterance=str(line.get("utterance", "")),
        domain=str(line.get("domain", "")),
        detail=visible(str(line.get("detail", ""))),
        text=visible(text),
        direction=direction(text),
        clip=clips.clip(str(line.get("audio", ""))),
    )


def _examples(round_dir: RoundDir, parent: RoundDir | None, clips: Clips) -> tuple[list[Group], int, str]:
    spec = round_dir.spec
    profile = spec.benchmark.profiles[0]

    def scored(text: str) -> str:
        return apply(profile, text)

    if not _predictions_path(round_dir).exists():
        return [], 0, ""
    try:
        candidate = read_predictions(read_json_lines(_predictions_path(round_dir)), scored)
    except (UserError, KeyError, TypeError, ValueError) as error:
        return [], 0, _why(error)
    line = ""
    baseline = []
    if parent is not None:
        try:
            baseline = read_predictions(read_json_lines(_predictions_path(parent)), scored)
        except (UserError, KeyError, TypeError, ValueError) as error:
            line = f"Without those of {spec.parent}: {_why(error)}"
    names = (spec.round, spec.parent if baseline else None)
    return choose(candidate, baseline, names, clips), len(candidate), line


def _predictions_path(round_dir: RoundDir) -> Path:
    return round_dir.folder("benchmark") / "predictions.jsonl"


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"predictions.jsonl: a line has no {error}"
    return str(error).splitlines()[0].rsplit("/", 1)[-1]
