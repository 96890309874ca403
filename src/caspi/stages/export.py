"""Export: sources -> manifests of train, dev and test sets, and a ledger that balances.

Shards are indexed one by one into parts, by as many machines as help; the split sees only keys of them; then the
manifests are written. Killed at any point and run again, it ends in the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from caspi.corpus.collection import DROPPED, Collection
from caspi.corpus.index import Rules, index_shard
from caspi.corpus.manifest import Utterance, manifest_line, write_manifest
from caspi.corpus.materialise import Wanted, materialise
from caspi.corpus.roots import EXPORT, identities, locate, places
from caspi.corpus.sources import Shard, count, shards
from caspi.corpus.split import EVAL, SHARED_TEXT, TRAIN, Labels, assign
from caspi.corpus.workers import cores
from caspi.errors import StageFailed, UserError
from caspi.files import atomic, json_line, read_json, write_json
from caspi.progress import progress
from caspi.records.results import ExportResults, SourceLedger
from caspi.records.round_dir import RoundDir
from caspi.spec import RoundSpec
from caspi.spec.data import Expected
from caspi.spec.models import Qwen3AsrModel
from caspi.stages.sharing import Board
from caspi.stages.stage import Outcome, Stage

SERIAL_BYTES = 256 << 20
"""Shards of less than this in all are indexed in one process: starting others takes longer."""


def inputs(round_dir: RoundDir) -> dict[str, str]:
    found = identities(round_dir.spec, round_dir.data_root, round_dir.path.parent / ".digests.json")
    return {"spec": round_dir.spec.digest} | {f"data {name}": value for name, value in found.items()}


def work(round_dir: RoundDir) -> Outcome:
    spec, folder = round_dir.spec, round_dir.folder("export")
    found = inputs(round_dir)
    _adopt(folder, found)
    board = Board(folder, found)
    plans = _plans(round_dir, board.folder)
    board.open()
    _index([task for plan in plans for task in plan.tasks], board)
    collections = [Collection(plan.name, plan.where, [task.part for task in plan.tasks]) for plan in plans]
    sources, test_sets = collections[: len(spec.data.sources)], collections[len(spec.data.sources) :]
    _split(sources, spec)
    if spec.data.materialise:
        _materialise(sources, {plan.name: plan.root for plan in plans}, folder)
    results = _results(sources, test_sets, spec)
    if spec.data.expected:
        check_expected(spec.data.expected, results)
    outputs = _write(sources, test_sets, results, spec, folder)
    board.close()
    return Outcome(results=results, outputs=outputs)


def assist(round_dir: RoundDir) -> None:
    """Index shards for the leader of this round, if it is at work on the same inputs."""
    board = Board(round_dir.folder("export"), inputs(round_dir))
    if board.is_open:
        _index([task for plan in _plans(round_dir, board.folder) for task in plan.tasks], board)


STAGE = Stage(name="export", inputs=inputs, work=work)


def check_expected(expected: Expected, results: ExportResults) -> None:
    """UserError when the export found something else than the round file says, beyond `within`."""
    found = {"train": results.train, "eval": results.eval, "hours": results.train_hours}
    wanted = {"train": expected.train, "eval": expected.eval, "hours": expected.hours}
    problems = [
        f"data.expected.{name} = {figure:,.10g}: the export found {found[name]:,.10g}; correct it, or the data"
        for name, figure in wanted.items()
        if figure is not None and abs(found[name] - figure) > expected.within * figure
    ]
    if problems:
        raise UserError(*problems)


def check_balance(ledger: SourceLedger, assigned: int) -> None:
    """StageFailed unless read == kept + dropped, and what is kept is what was assigned (train and dev)."""
    dropped = sum(ledger.dropped.values())
    if ledger.read != ledger.kept + dropped or ledger.kept != assigned:
        raise StageFailed(
            f"the ledger of {ledger.name} does not balance: read {ledger.read}, kept {ledger.kept}, dropped {dropped}, "
            f"assigned {assigned}; this is a bug of the export, please report it"
        )


@dataclass(frozen=True, slots=True)
class _Task:
    """A shard to index."""

    shard: Shard
    rules: Rules
    part: Path


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be indexed of one source or test set."""

    name: str
    where: str
    root: Path
    tasks: Sequence[_Task]


def _adopt(folder: Path, found: Mapping[str, str]) -> None:
    """Go on with the audio of an earlier run, if it had the same inputs; otherwise start over."""
    for unfinished in folder.rglob(".*.part"):  # what a kill left of an atomic write
        if not unfinished.parent.name.startswith("parts-"):  # an assistant may be at it
            unfinished.unlink()
    marker = folder / ".inputs.json"
    try:
        same = read_json(marker) == found
    except UserError:
        same = False
    if not same:
        for name in ("audio", "upstream", "nemo", "sets"):
            shutil.rmtree(folder / name, ignore_errors=True)
        write_json(marker, found)


def _plans(round_dir: RoundDir, parts: Path) -> list[_Plan]:
    spec, plans = round_dir.spec, []
    for where, source in places(spec).items():
        place = locate(source, round_dir.data_root, where)
        found = shards(source, place)
        trains = where.startswith("data.")
        rules = Rules(source.domain)
        if trains:
            subset = 1.0 if spec.data.subset is None else spec.data.subset
            rules = Rules(source.domain, spec.data.text, spec.data.keep, subset, spec.seed)
        tasks = [_Task(shard, rules, parts / f"{source.name}.{n:05d}.jsonl") for n, shard in enumerate(found)]
        plans.append(_Plan(source.name, where, found[0].root, tasks))
    return plans


def _index(tasks: Sequence[_Task], board: Board) -> None:
    missing = {task.part.name: task for task in tasks if not task.part.exists()}
    counts = {name: count(task.shard) for name, task in missing.items()}
    total = None if None in counts.values() else sum(number or 0 for number in counts.values())
    size = sum(task.shard.path.stat().st_size for task in missing.values())
    processes = 1 if size < SERIAL_BYTES else min(cores(), len(missing))
    with progress("export", total, "rows") as bar:

        def index_here(task: _Task) -> int:
            index_shard(task.shard, task.rules, task.part, bar.update)
            return 0  # the bar knows already

        for name, rows in board.share(missing, index_here if processes == 1 else _index_one, processes):
            bar.update(counts[name] or 0 if rows is None else rows)


def _index_one(task: _Task) -> int:
    return index_shard(task.shard, task.rules, task.part)


def _split(sources: Sequence[Collection], spec: RoundSpec) -> None:
    """Send each utterance of all sources to train or dev, or leave it out."""
    kept = [source.side != DROPPED for source in sources]
    names = Labels.__slots__
    labels = Labels(
        **{
            name: np.concatenate([getattr(source.labels, name)[k] for source, k in zip(sources, kept, strict=True)])
            for name in names
        }
    )
    sides = assign(labels, spec.data.split.by, spec.data.split.eval, spec.seed)
    ends = np.cumsum([chosen.sum() for chosen in kept])[:-1]
    for source, chosen, part in zip(sources, kept, np.split(sides, ends), strict=True):
        source.side[chosen] = part
        for number in np.flatnonzero(source.side == SHARED_TEXT).tolist():
            source.drop(number, "text on both sides of the split")


def _materialise(sources: Sequence[Collection], roots: Mapping[str, Path], folder: Path) -> None:
    numbers = {source.name: source for source in sources}
    total = sum(int((source.side != DROPPED).sum()) for source in sources)
    wanted = (
        Wanted(source.name, collected.number, collected.utterance.audio, folder / _wav(collected.utterance))
        for source in sources
        for collected in source
    )
    with progress("wav", total, "clips") as bar:
        for batch in materialise(wanted, roots, min(cores(), 1 + total // 256)):
            for clip in batch:
                source = numbers[clip.source]
                if clip.dropped:
                    source.drop(clip.number, clip.dropped)
                else:
                    source.seconds[clip.number] = clip.seconds
            bar.update(len(batch))


def _wav(utterance: Utterance) -> str:
    return f"audio/{utterance.id}.wav"


def _results(sources: Sequence[Collection], test_sets: Sequence[Collection], spec: RoundSpec) -> ExportResults:
    ledgers = [source.ledger(trains=True) for source in sources]
    set_ledgers = [test_set.ledger(trains=False) for test_set in test_sets]
    for ledger in ledgers:
        check_balance(ledger, ledger.train + ledger.eval)
    for ledger in set_ledgers:
        check_balance(ledger, ledger.kept)
    return ExportResults(
        sources=ledgers,
        sets=set_ledgers,
        train=sum(ledger.train for ledger in ledgers),
        eval=sum(ledger.eval for ledger in ledgers),
        train_hours=round(sum(source.hours(TRAIN) for source in sources), 4),
        eval_hours=round(sum(source.hours(EVAL) for source in sources), 4),
        text=spec.data.text,
    )


def _write(
    sources: Sequence[Collection],
    test_sets: Sequence[Collection],
    results: ExportResults,
    spec: RoundSpec,
    folder: Path,
) -> list[str]:
    """All manifests; returns those that the record pins. Upstream and NeMo manifests hold paths of this machine; the
    upstream one exists where there is an upstream: the training script of Qwen3-ASR."""
    names = {TRAIN: "train", EVAL: "eval"}
    with ExitStack() as stack:
        manifests = {side: stack.enter_context(atomic(folder / f"{name}.jsonl")) for side, name in names.items()}
        nemo, upstream = {}, {}
        if spec.data.materialise:
            nemo = {side: stack.enter_context(atomic(folder / "nemo" / f"{name}.json")) for side, name in names.items()}
            if isinstance(spec.model, Qwen3AsrModel):
                upstream = {
                    side: stack.enter_context(atomic(folder / "upstream" / f"{name}.jsonl"))
                    for side, name in names.items()
                }
        for source in sources:
            for collected in source:
                side, utterance = int(source.side[collected.number]), collected.utterance
                if spec.data.materialise:
                    seconds = float(source.seconds[collected.number])
                    wav = _wav(utterance)
                    utterance = replace(utterance, audio=f"{EXPORT}/{wav}", seconds=seconds)
                    nemo[side].write(json_line(_nemo(folder / wav, utterance.text, seconds)))
                    if isinstance(spec.model, Qwen3AsrModel):
                        upstream[side].write(json_line(_upstream(folder / wav, utterance.text, spec.model.language)))
                manifests[side].write(manifest_line(utterance))
    for test_set in test_sets:
        write_manifest(folder / _set_name(test_set), (collected.utterance for collected in test_set))
    write_json(folder / "ledger.json", results.model_dump(mode="json"))
    return ["train.jsonl", "eval.jsonl", "ledger.json", *(_set_name(test_set) for test_set in test_sets)]


def _set_name(test_set: Collection) -> str:
    return f"sets/{test_set.name}.jsonl"


def _upstream(wav: Path, text: str, language: str) -> dict[str, object]:
    """A line as the training script of Qwen3-ASR reads it."""
    return {"audio": str(wav.absolute()), "text": f"language {language}<asr_text>{text}"}


def _nemo(wav: Path, text: str, seconds: float) -> dict[str, object]:
    return {"audio_filepath": str(wav.absolute()), "duration": seconds, "text": text}
