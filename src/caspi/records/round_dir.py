"""One directory holds all of a round: runs/<name>-<first 8 of its digest>/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from caspi.errors import UserError
from caspi.files import write_text
from caspi.records.record import Record, StageName, read_record
from caspi.spec import ClusterSpec, RoundSpec, load_cluster, load_round


@dataclass(frozen=True, slots=True)
class RoundDir:
    """A round on disk: its spec and cluster as resolved, and a folder for each stage."""

    path: Path
    spec: RoundSpec
    cluster: ClusterSpec

    def folder(self, stage: StageName) -> Path:
        """Where a stage writes. Created by the stage."""
        return self.path / stage

    @property
    def model(self) -> Path:
        """The trained model, in the layout that its own ecosystem loads."""
        return self.path / "model"

    def record(self, stage: StageName) -> Record | None:
        return read_record(self.folder(stage) / "record.json")

    def succeeded(self, stage: StageName) -> Record:
        """The record of a stage that this one builds on; UserError says how to get it."""
        record = self.record(stage)
        if record is None or record.status != "succeeded":
            state = "has not run" if record is None else f"failed ({record.error})"
            raise UserError(
                f"stage {stage} {state}; run `caspi stage {stage} --round-dir {self.path}`", where=str(self.path)
            )
        return record

    @property
    def data_root(self) -> Path:
        """What relative paths of the spec start from."""
        assert self.cluster.data_root is not None, "create() resolves it"
        return Path(self.cluster.data_root)

    def parent(self) -> RoundDir | None:
        """The parent's round directory, a sibling of this one; UserError when it is not there."""
        return find_round(self.path.parent, self.spec.parent) if self.spec.parent else None


def round_path(runs: Path, spec: RoundSpec) -> Path:
    return runs / f"{spec.round}-{spec.digest[:8]}"


def create(runs: Path, spec: RoundSpec, cluster: ClusterSpec, round_folder: Path) -> RoundDir:
    """Make or adopt the directory of a round. The spec in it is never touched again; the cluster may change.

    Pods of a job are not told where on Kubernetes they are: what whoever submits them wrote about that stays.
    """
    path = round_path(runs, spec)
    resolved = cluster.model_copy(update={"data_root": str((round_folder / (cluster.data_root or "")).resolve())})
    if resolved.kubernetes is None and (path / "cluster.yaml").is_file():
        resolved = resolved.model_copy(update={"kubernetes": load_cluster(path / "cluster.yaml").kubernetes})
    if not (path / "round.yaml").exists():
        write_text(path / "round.yaml", _yaml(spec.model_dump_json()))
    write_text(path / "cluster.yaml", _yaml(resolved.model_dump_json()))
    return open_round(path)


def open_round(path: Path) -> RoundDir:
    """Open a round directory; UserError when it is none."""
    if not (path / "round.yaml").is_file():
        raise UserError("no round directory: it has no round.yaml", where=str(path))
    spec = load_round(path / "round.yaml")
    if not path.name.endswith(f"-{spec.digest[:8]}"):
        raise UserError(
            f"round.yaml was changed: it digests to {spec.digest[:8]}; run the changed round from its own file",
            where=str(path),
        )
    return RoundDir(path=path, spec=spec, cluster=load_cluster(path / "cluster.yaml"))


def find_round(runs: Path, name: str) -> RoundDir:
    """The newest directory of the round called `name` under `runs`, by its last finished stage."""
    found = [
        path
        for path in runs.glob(f"{name}-????????")
        if (path / "round.yaml").is_file() and path.name[: -len("-12345678")] == name
    ]
    if not found:
        raise UserError(f'no round "{name}" under {runs}; run it first: caspi run rounds/{name}.yaml')
    newest = max(found, key=lambda path: max((r.stat().st_mtime for r in path.glob("*/record.json")), default=0.0))
    return open_round(newest)


def _yaml(text: str) -> str:
    return yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
