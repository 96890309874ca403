"""Audit: manifests and their audio -> findings, what is left out, a share of low quality, and a decision."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from caspi.audit.gate import Decision, audit_inputs, decide
from caspi.audit.leakage import Held, copies, same_audio
from caspi.audit.listening import Heard, listen, processes_for, read_heard, stretches
from caspi.audit.sampling import choose, low_quality_share
from caspi.audit.signals import characters_per_second, signal_problems, text_problems
from caspi.corpus.audio import AudioReader
from caspi.corpus.manifest import Utterance, read_manifest
from caspi.corpus.roots import roots
from caspi.corpus.text import normalise
from caspi.files import atomic, json_line, write_json
from caspi.progress import progress
from caspi.records.results import AuditResults, DomainAudit, Estimate, Finding
from caspi.records.round_dir import RoundDir
from caspi.spec import RoundSpec
from caspi.spec.data import AuditCheck
from caspi.stages.sharing import Board
from caspi.stages.stage import Outcome, Stage

FINGERPRINT_ALL = 20_000
"""Up to so many clips, all are decoded to look for copies encoded anew. Above, the audit's sample and the clips that
say the same in the same time as another one; copies of equal bytes are always found."""

IN_ALL: frozenset[AuditCheck] = frozenset({"conflicting_text", "duplicate", "leaked"})
"""Checks that look at every utterance; the others look at the sample."""

LOW_QUALITY: frozenset[AuditCheck] = frozenset(
    {"undecodable", "silent", "clipped", "quiet", "text_rate", "conflicting_text"}
)
"""Checks whose findings make an utterance worthless to learn from. A copy is good in itself."""


def inputs(round_dir: RoundDir) -> Mapping[str, str]:
    return audit_inputs(round_dir.succeeded("export"))


def work(round_dir: RoundDir) -> Outcome:
    spec, folder = round_dir.spec, round_dir.folder("audit")
    clips = _clips(round_dir)
    train, held, sampled = clips.train, clips.held, clips.sampled
    board = Board(folder, inputs(round_dir))
    board.open()
    parts = _listen(round_dir, clips, board)
    heard = {name: found for part in parts for name, found in read_heard(part)}

    findings = sorted(
        [*_sample_findings([train[name] for name in sorted(sampled)], heard), *_copies(train, held, heard)],
        key=lambda finding: (finding.utterance, finding.check),
    )
    judged = _judge(spec, [*train.values()], sampled, findings)
    with atomic(folder / "findings.jsonl") as file:
        file.writelines(json_line(finding.model_dump(mode="json")) for finding in findings)
    write_json(folder / "left_out.json", sorted(judged.left_out))
    board.close()
    return Outcome(
        results=AuditResults(
            decision=judged.decision.decision,
            reasons=judged.decision.reasons,
            sampled=len(sampled),
            utterances=len(train),
            low_quality=judged.low_quality,
            domains=judged.domains,
            findings=dict(sorted(Counter(finding.check for finding in findings).items())),
            left_out=len(judged.left_out),
            fingerprinted=sum(one.fingerprint is not None for one in heard.values()),
            shared_texts=_shared_texts(spec, train, held),
        ),
        outputs=["findings.jsonl", "left_out.json"],
    )


def assist(round_dir: RoundDir) -> None:
    """Listen to clips for the leader of this round, if it is at work on the same export."""
    board = Board(round_dir.folder("audit"), inputs(round_dir))
    if board.is_open:
        _listen(round_dir, _clips(round_dir), board)


STAGE = Stage(name="audit", inputs=inputs, work=work)


@dataclass(frozen=True, slots=True)
class _Clips:
    """What is listened to."""

    train: dict[str, Utterance]
    held: dict[str, Held]
    """Dev and the test sets."""
    sampled: set[str]
    """Ids of the audit's sample of `train`."""

    def all(self) -> list[Utterance]:
        return [*self.train.values(), *(one.utterance for one in self.held.values())]


def _clips(round_dir: RoundDir) -> _Clips:
    spec, export = round_dir.spec, round_dir.folder("export")
    train = {one.id: one for one in read_manifest(export / "train.jsonl")}
    held = {one.id: Held(one, "dev") for one in read_manifest(export / "eval.jsonl")}
    for test_set in spec.benchmark.sets:
        members = read_manifest(export / "sets" / f"{test_set.name}.jsonl")
        held |= {one.id: Held(one, f"test set {test_set.name}") for one in members}
    return _Clips(train, held, choose([*train.values()], spec.audit.sample, spec.seed))


def _listen(round_dir: RoundDir, clips: _Clips, board: Board) -> list[Path]:
    """Read every clip and decode those that are to be; the parts with what was heard."""
    everything = clips.all()
    few = len(everything) <= FINGERPRINT_ALL
    decoded = {one.id for one in everything} if few else clips.sampled | _alike(everything)
    tasks = stretches(everything, decoded, board.folder)
    reader = AudioReader(roots(round_dir.spec, round_dir.data_root, round_dir.folder("export")))
    with progress("audit", len(everything), "clips") as bar:
        for name, _ in board.share(tasks, partial(listen, reader), processes_for(len(decoded))):
            bar.update(len(tasks[name].clips))
    return [task.part for task in tasks.values()]


def _alike(utterances: Sequence[Utterance]) -> set[str]:
    """Ids of utterances that say the same as another one of nearly the same length: perhaps copies."""
    by_text: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_text[utterance.text].append(utterance)
    found: set[str] = set()
    for members in by_text.values():
        members.sort(key=lambda one: one.seconds)
        for one, next_ in pairwise(members):
            if next_.seconds - one.seconds <= max(0.12, 0.02 * one.seconds):
                found |= {one.id, next_.id}
    return found


def _sample_findings(sample: Sequence[Utterance], heard: Mapping[str, Heard]) -> Iterator[Finding]:
    for utterance in sample:
        found = heard[utterance.id]
        if found.signals is None:
            yield _finding(utterance, "undecodable", found.problem or "not decodable")
        else:
            for check, detail in signal_problems(found.signals, utterance.seconds):
                yield _finding(utterance, check, detail)
    for utterance, detail in text_problems(sample):
        yield _finding(utterance, "text_rate", detail)


def _copies(train: Mapping[str, Utterance], held: Mapping[str, Held], heard: Mapping[str, Heard]) -> Iterator[Finding]:
    seconds = {name: one.seconds for name, one in train.items()}
    seconds |= {name: one.utterance.seconds for name, one in held.items()}
    groups = same_audio(
        {name: one.digest for name, one in heard.items() if one.digest is not None},
        {name: one.fingerprint for name, one in heard.items() if one.fingerprint is not None},
        seconds,
    )
    for utterance, check, detail in copies(groups, train, held):
        yield _finding(utterance, check, detail)


def _shared_texts(spec: RoundSpec, train: Mapping[str, Utterance], held: Mapping[str, Held]) -> int:
    """Utterances of dev and the test sets that say, normalised, what some training utterance says."""
    texts = {utterance.text for utterance in train.values()}
    return sum(normalise(spec.data.text, one.utterance.text) in texts for one in held.values())


def _finding(utterance: Utterance, check: AuditCheck, detail: str) -> Finding:
    return Finding(
        utterance=utterance.id,
        check=check,
        detail=detail,
        domain=utterance.domain,
        source=utterance.source,
        text=utterance.text,
        audio=utterance.audio,
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    """The findings, summed up."""

    decision: Decision
    left_out: set[str]
    low_quality: Estimate
    domains: list[DomainAudit]


def _judge(spec: RoundSpec, train: Sequence[Utterance], sampled: set[str], findings: Sequence[Finding]) -> _Judged:
    """The gate judges what will be trained on, so after `leave_out`; the reasons also say what it was before."""
    audit = spec.audit
    low = {finding.utterance for finding in findings if finding.check in LOW_QUALITY}
    left_out = {finding.utterance for finding in findings if finding.check in audit.leave_out}
    anyway = {finding.utterance for finding in findings if finding.check in {*audit.leave_out} & IN_ALL}

    def share(utterances: Sequence[Utterance]) -> Estimate:
        return low_quality_share(utterances, sampled, low, left_out, anyway)

    by_domain: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in train:
        by_domain[utterance.domain].append(utterance)
    domains = [
        DomainAudit(
            domain=domain,
            utterances=len(members),
            sampled=sum(one.id in sampled for one in members),
            low_quality=share(members),
            median_seconds=round(float(np.median([one.seconds for one in members])), 3),
            median_characters_per_second=round(float(np.median([characters_per_second(one) for one in members])), 2),
        )
        for domain, members in sorted(by_domain.items())
    ]
    low_quality = share(train)
    trained = {one.domain for one in train if one.id not in left_out}
    decision = decide(
        audit,
        low_quality,
        {one.domain: one.low_quality for one in domains if one.domain in trained},
        len(sampled),
        len(train) - len(left_out),
    )
    notes = _notes(audit.leave_out, left_out, findings, low_quality_share(train, sampled, low))
    return _Judged(Decision(decision.decision, [*decision.reasons, *notes]), left_out, low_quality, domains)


def _notes(
    leave_out: Sequence[AuditCheck], left_out: set[str], findings: Sequence[Finding], before: Estimate
) -> Iterator[str]:
    if left_out:
        yield f"{len(left_out)} utterances are left out ({', '.join(leave_out)}); before, {before.value:.1%} were low"
    leaked = sum(finding.check == "leaked" for finding in findings)
    if leaked and "leaked" not in leave_out:
        yield f"{leaked} utterances of dev or a test set are trained on: add leaked to audit.leave_out"
