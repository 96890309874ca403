"""What the steps of the pipeline do: each one is a stage of `caspi run`, the same command in a process of its own.

So records are equal by digest, and a stage whose record is there, on the same inputs, is adopted in seconds. The round
directory is the truth; artifacts only point at it. A step takes the digests of the records that it reads and refuses
others: another run may have changed the directory meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from caspi.audit.gate import check_gate
from caspi.errors import CaspiError, GateRefused, UserError
from caspi.execution.local import run_stage
from caspi.execution.prepare import Approval, load_same, pass_gate
from caspi.files import read_json_lines
from caspi.pipeline.ending import one_line, remembered, say
from caspi.pipeline.shown import audit_page, compare_page, gate_page, metrics
from caspi.records.record import STAGES, Record, StageName
from caspi.records.results import AuditResults, CompareResults, Finding
from caspi.records.round_dir import RoundDir, create, open_round, round_path
from caspi.spec import ClusterSpec, RoundSpec, load_cluster
from caspi.stages.stage import Occupied, alone
from caspi.status import summary


@dataclass(frozen=True, slots=True)
class Done:
    """What a step hands on."""

    directory: str
    """The round directory, as the steps see it."""
    digest: str
    """Of its record; empty where there was nothing to do."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Of its artifacts."""
    metrics: dict[str, float] = field(default_factory=dict)


def export(round: str, cluster: str, digest: str, runs: str, dataset: str) -> Done:
    """Make or adopt the round's directory under `runs`, and export.

    `round` and `cluster` are the texts of the files, `digest` the round's sha256. `dataset` is the file that becomes
    the artifact: the export's record.
    """
    with one_line():
        round_dir = _adopt(round, cluster, runs, digest)
        return _done(round_dir, _performed(round_dir, "export"), dataset)


def audit(directory: str, export: str, findings: str) -> Done:
    """Audit; `findings` becomes the Markdown."""
    with one_line():
        round_dir = _open(directory, export=export)
        record = _performed(round_dir, "audit")
        lines = read_json_lines(round_dir.folder("audit") / "findings.jsonl")
        _write(findings, audit_page(_audited(record), map(Finding.model_validate, lines)))
        return _done(round_dir, record)


def gate(
    directory: str, audit: str, by: str, reason: str, approved: str, decided: str, decision: str
) -> Literal["pass", "refuse"]:
    """Pass the gate, or say why not, in one of two words: for the one condition of the pipeline.

    An approval signs a CAUTION: who, why, and at least 12 digits of the audit's digest that was looked at. `decided`
    becomes the Markdown, `decision` the audit's word.
    """
    with one_line():
        round_dir = _open(directory, audit=audit)
        found, refused = _audited(round_dir.succeeded("audit")), ""
        try:
            pass_gate(round_dir, _approval(by, reason, approved))
        except GateRefused as error:
            refused = str(error)
            say(refused)
        _write(decided, gate_page(found, audit, refused))
        _write(decision, found.decision)
        return "refuse" if refused else "pass"


def train(directory: str, audit: str, train_by: str, run: str, model: str) -> Done:
    """Train: by `helm` with a PyTorchJob of the cluster, by `process` here. `run` is the pipeline run's id.

    Refuses without a passed gate, whatever the pipeline's condition said. `model` becomes the artifact: the record.
    """
    with one_line():
        round_dir = _open(directory)
        check_gate(round_dir)
        _expect(round_dir, "audit", audit)
        with remembered(round_dir.path, run, "train"):
            record = _performed(round_dir, "train", _trainer(train_by, run))
        return _done(round_dir, record, model, path=round_dir.model)


def benchmark(directory: str, export: str, train: str) -> Done:
    """Serve the model, and measure it on the round's test sets."""
    with one_line():
        round_dir = _open(directory, export=export, train=train)
        return _done(round_dir, _performed(round_dir, "benchmark"))


def compare(directory: str, benchmark: str, verdict: str) -> Done:
    """Compare with the parent; a round without one says so. `verdict` becomes the Markdown."""
    with one_line():
        round_dir = _open(directory, benchmark=benchmark)
        if not round_dir.spec.parent:
            say(sentence := f"{round_dir.spec.round} has no parent: there is nothing to compare with")
            _write(verdict, f"{sentence}.\n")
            return Done(directory, "")
        record = _performed(round_dir, "compare")
        _write(verdict, compare_page(CompareResults.model_validate(record.results)))
        return _done(round_dir, record)


def report(directory: str, benchmark: str, compare: str, page: str) -> Done:
    """Make the round's page; `page` becomes a copy of it. `compare` is empty for a round without a parent."""
    with one_line():
        round_dir = _open(directory, benchmark=benchmark)
        if compare:
            _expect(round_dir, "compare", compare)
        record = _performed(round_dir, "report")
        shutil.copyfile(round_dir.folder("report") / "index.html", page)
        return _done(round_dir, record)


def free(round: str, cluster: str, digest: str, runs: str, train_by: str, run: str, state: str) -> None:
    """The last step, whatever became of the others: no GPU stays taken, and a round that ended early has its page."""
    with one_line():
        spec, where = _specs(round, cluster, digest)
        place = round_path(Path(runs), spec)
        say(f"{spec.round}: the run ended as {state}")
        if train_by == "helm":
            from caspi.pipeline.job import free

            say("its GPUs are free" if free(spec, where, run, say, place) else "it holds no GPU")
        else:
            say("training was a process of its step, and ended with it: it holds no GPU")
        _last_page(place)


def _performed(round_dir: RoundDir, stage: StageName, how: Callable[[RoundDir], None] | None = None) -> Record:
    """The record of a stage that ran now, or was done before on the same inputs."""
    if how:
        how(round_dir)
    else:
        before = round_dir.record(stage)
        if before is None or before.status != "succeeded":  # else it is only read, also while the round is trained
            _wait_for_others(round_dir)
        run_stage(round_dir, stage)
    record = round_dir.succeeded(stage)
    say(f"{stage}: {summary(record)}")
    return record


def _wait_for_others(round_dir: RoundDir) -> None:
    """An earlier try of this step may still be ending; the step's timeout is the limit."""
    while True:
        try:
            with alone(round_dir):
                return
        except Occupied as error:
            say(f"{error}: waiting")


def _trainer(train_by: str, run: str) -> Callable[[RoundDir], None] | None:
    """How to train, where a process is not how."""
    if train_by == "process":
        return None
    if train_by != "helm":
        raise UserError(f'train_by = "{train_by}": it is helm (a PyTorchJob) or process (in this step)')

    def by_helm(round_dir: RoundDir) -> None:
        from caspi.pipeline.job import train_by_helm

        train_by_helm(round_dir, run, say)

    return by_helm


def _specs(round: str, cluster: str, digest: str) -> tuple[RoundSpec, ClusterSpec]:
    with tempfile.TemporaryDirectory() as folder:
        round_file, cluster_file = Path(folder) / "round.yaml", Path(folder) / "cluster.yaml"
        round_file.write_text(round, encoding="utf-8")
        cluster_file.write_text(cluster, encoding="utf-8")
        return load_same(round_file, digest), load_cluster(cluster_file)


def _adopt(round: str, cluster: str, runs: str, digest: str) -> RoundDir:
    spec, where = _specs(round, cluster, digest)
    paths = [one.path for one in spec.data.sources] + [one.path for one in spec.benchmark.sets]
    loose = [path for path in paths if path and not path.startswith("/")]
    if loose and not Path(where.data_root or "").is_absolute():
        raise UserError(
            f"data_root = {where.data_root}: {loose[0]} is a relative path, and a step knows no folder of the round "
            "file; say in the cluster file from where, for example data_root: /rounds/data",
            where="cluster",
        )
    return create(Path(runs), spec, where, Path("/"))


def _open(directory: str, **expected: str) -> RoundDir:
    """The round directory, with exactly these records in it."""
    round_dir = open_round(Path(directory))
    for stage in STAGES:
        if stage in expected:
            _expect(round_dir, stage, expected[stage])
    return round_dir


def _expect(round_dir: RoundDir, stage: StageName, digest: str) -> None:
    there = round_dir.succeeded(stage).digest
    if there != digest:
        raise UserError(
            f"it digests to {there[:12]}, and this step was to read {digest[:12]}: the round was run anew meanwhile; "
            "start the pipeline again",
            where=str(round_dir.folder(stage) / "record.json"),
        )


def _approval(by: str, reason: str, audit: str) -> Approval | None:
    given = {"approve_by": by.strip(), "approve_reason": reason.strip(), "approve_audit": audit.strip()}
    empty = [name for name, value in given.items() if not value]
    if len(empty) == len(given):
        return None
    if empty:
        raise UserError(f"{', '.join(empty)}: empty; an approval says who decided, why, and of which audit")
    if len(given["approve_audit"]) < 12:
        raise UserError(f'approve_audit = "{given["approve_audit"]}": give at least 12 digits of the audit\'s digest')
    return Approval(given["approve_by"], given["approve_reason"], given["approve_audit"])


def _audited(record: Record) -> AuditResults:
    return AuditResults.model_validate(record.results)


def _done(round_dir: RoundDir, record: Record, pointer: str = "", path: Path | None = None) -> Done:
    folder = round_dir.folder(record.stage)
    if pointer:
        shutil.copyfile(folder / "record.json", pointer)
    metadata = {
        "round": round_dir.spec.round,
        "round_dir": str(round_dir.path),
        "path": str(path or folder),
        "digest": record.digest,
    }
    return Done(str(round_dir.path), record.digest, metadata, metrics(record))


def _last_page(path: Path) -> None:
    """As `caspi run` does: the report of a round that was refused or failed shows why."""
    if not (path / "export" / "record.json").is_file():
        return
    try:
        run_stage(open_round(path), "report")
    except CaspiError as error:
        say(f"no report {error}".rstrip())


def _write(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
