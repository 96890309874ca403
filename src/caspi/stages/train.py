"""Train: manifests and a base (or the parent's model) -> checkpoints, metrics, and the round's model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from caspi.audit.gate import check_gate
from caspi.corpus.audio import AudioReader
from caspi.corpus.manifest import Utterance, read_manifest
from caspi.corpus.roots import roots
from caspi.errors import UserError
from caspi.families import family_of
from caspi.families.base import Family
from caspi.families.counts import parameter_counts
from caspi.files import digest, file_digest, folder_digest, read_json
from caspi.plan.memory import micro_batch_seconds
from caspi.records.results import TrainResults
from caspi.records.round_dir import RoundDir
from caspi.spec import RoundSpec
from caspi.spec.models import is_made_here, is_repository
from caspi.stages.stage import Outcome, Stage
from caspi.training.checkpoint import publish
from caspi.training.distributed import Processes, processes
from caspi.training.engine import Trained, Work, train

MANIFESTS = ("train.jsonl", "eval.jsonl")


def inputs(round_dir: RoundDir) -> Mapping[str, str]:
    found = {**_data(round_dir), "base": _base_digest(round_dir)}
    audit = round_dir.record("audit")
    if audit:
        found["audit"] = audit.digest
    approval = round_dir.folder("audit") / "approval.json"
    if approval.exists():
        found["audit/approval.json"] = file_digest(approval)
    return found


def work(round_dir: RoundDir) -> Outcome:
    check_gate(round_dir)
    spec, cluster, folder = round_dir.spec, round_dir.cluster, round_dir.folder("train")
    chosen = _chosen(round_dir)
    dev = read_manifest(round_dir.folder("export") / "eval.jsonl")
    family = family_of(spec.model)
    with processes(cluster.hang_timeout) as ranks:
        cap, memory = micro_batch_seconds(spec, cluster, parameter_counts(spec.model), ranks.world_size)
        trained = train(
            Work(
                spec=spec,
                cluster=cluster,
                family=family,
                base=_base(round_dir, family, chosen, ranks),
                folder=folder,
                train=chosen,
                dev=dev,
                reader=AudioReader(roots(spec, round_dir.data_root, round_dir.folder("export"))),
                max_padded_seconds=cap,
                identity=digest({**_data(round_dir), "base": _base_digest(round_dir), "spec": spec.digest}),
                strategy=memory.strategy if memory else "ddp",
            ),
            ranks,
        )
        if ranks.leader:
            publish(trained.chosen, round_dir.model)
        ranks.wait()
    return Outcome(
        results=_results(spec, trained, len(chosen) - sum(trained.left_out.values())),
        outputs=[f"../model/{path.name}" for path in sorted(round_dir.model.iterdir()) if path.is_file()],
        figures=trained.figures,
    )


STAGE = Stage(name="train", inputs=inputs, work=work)


def _data(round_dir: RoundDir) -> dict[str, str]:
    """What is trained on: the manifests, and what the audit leaves out of them."""
    export = round_dir.succeeded("export")
    found = {f"export/{name}": export.outputs[name] for name in MANIFESTS}
    left_out = round_dir.folder("audit") / "left_out.json"
    if left_out.exists():
        found["audit/left_out.json"] = file_digest(left_out)
    return found


def _base_digest(round_dir: RoundDir) -> str:
    parent, model = round_dir.parent(), round_dir.spec.model
    if parent is not None:
        return parent.succeeded("train").digest
    if is_made_here(model.base) or is_repository(model.base):
        return digest({"base": model.base, "revision": model.revision})
    return folder_digest(_local(model.base))


def _base(round_dir: RoundDir, family: Family, utterances: list[Utterance], ranks: Processes) -> Path:
    """The folder that training starts from; the leader makes or downloads it, the others find it."""
    parent = round_dir.parent()
    if parent is not None:
        parent.succeeded("train")
        return parent.model
    texts, model, seed = [utterance.text for utterance in utterances], round_dir.spec.model, round_dir.spec.seed
    folder = round_dir.folder("train") / "base"
    if ranks.leader:
        family.prepare(model, texts, seed, folder)
    ranks.wait()
    return family.prepare(model, texts, seed, folder)


def _local(base: str) -> Path:
    path = Path(base).expanduser()
    if not path.is_dir():
        raise UserError(f"model.base = {base}: no such folder")
    return path


def _chosen(round_dir: RoundDir) -> list[Utterance]:
    """The training manifest without what the audit leaves out."""
    left_out = set(read_json(round_dir.folder("audit") / "left_out.json"))
    return [one for one in read_manifest(round_dir.folder("export") / "train.jsonl") if one.id not in left_out]


def _results(spec: RoundSpec, trained: Trained, utterances: int) -> TrainResults:
    model = spec.model
    base = spec.parent or (f"{model.base}@{model.revision}" if model.revision else model.base)
    return TrainResults(
        base=base,
        steps=trained.steps,
        utterances=utterances,
        phases=trained.phases,
        dev=trained.dev,
        chosen_step=trained.score.step,
        chosen_wer=trained.score.wer,
        tied=trained.tied,
        stopped=trained.stopped,
        left_out=trained.left_out,
        average=trained.average,
        chosen="average" if trained.score is trained.average else "step",
        sources=trained.sources,
        warnings=trained.warnings,
        adapters=trained.adapters,
    )
