"""Checkpoints that are whole or not there.

    checkpoints/step-000150/                   (average-of-3/: the mean of the three best, a candidate as they are)
        config.json model.safetensors ...      the family's own layout: the folder loads as a model by itself
        engine/optimizer.safetensors           AdamW by parameter name; fp32
        engine/state.json                      where training stands
        checkpoint.json                        sizes and digests of all of it; written last

A folder is written under a temporary name, flushed to disk and renamed, by the leader. Weights and moments are whole
tensors by name, gathered one by one where they are sharded: any number of processes loads them, sharded or not, and
so does the family's own package. Nothing here is pickled (torch.distributed.checkpoint's metadata is).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from caspi.errors import UserError
from caspi.families.base import Model
from caspi.files import file_digest, no_space_left, read_json, write_json, write_text
from caspi.records.results import DevScore

ENGINE = "engine"
MANIFEST = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class State:
    """Where training stands: with the weights and the optimizer, all that the next step depends on."""

    identity: str
    """sha256 of everything that decides the weights: spec, data, base. Another identity is other work."""
    step: int
    """Optimizer steps taken."""
    phase: str
    """Of the optimizer's state."""
    dev: tuple[DevScore, ...]
    skipped: int
    """Utterances whose audio could not be decoded, each time counted."""
    seconds: float
    """Spent on the steps so far."""
    versions: Mapping[str, str]
    watch: Mapping[str, Any] = field(default_factory=dict)
    """What the rules of training/watch.py remember."""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "dev": [score.model_dump() for score in self.dev]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> State:
        return cls(**{**values, "dev": tuple(DevScore.model_validate(score) for score in values["dev"])})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: State

    @property
    def step(self) -> int:
        return self.state.step

    def optimizer(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / ENGINE / "optimizer.safetensors")


def save_checkpoint(folder: Path, state: State, model: Model, optimizer: Mapping[str, torch.Tensor]) -> Checkpoint:
    """Write `folder`/step-NNNNNN, whole or not at all, and point `latest` at it. Free when it is there already."""
    path = folder / f"step-{state.step:06d}"
    if read_checkpoint(path) is None:
        temporary = folder / f".{path.name}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            (temporary / ENGINE).mkdir(parents=True)
            model.save(temporary)
            save_file(dict(optimizer), temporary / ENGINE / "optimizer.safetensors")
            write_json(temporary / ENGINE / "state.json", state.as_json())
            seal(temporary, path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if no_space_left(error):
                raise
            raise UserError(
                f"checkpoint of step {state.step} could not be written ({error}); "
                "free some space and run the same command again, it goes on from the checkpoint before",
                where=str(folder),
            ) from None
    write_text(folder.parent / "latest", path.name + "\n")
    return Checkpoint(path, state)


def seal(temporary: Path, path: Path) -> None:
    """Make the finished folder `temporary` the whole checkpoint `path`: measured, flushed to disk, renamed."""
    write_json(temporary / MANIFEST, {"files": _measured(temporary)})
    _flush(temporary)
    shutil.rmtree(path, ignore_errors=True)  # torn: read_checkpoint refused it
    temporary.rename(path)
    _flush_entry(path.parent)


def read_checkpoint(path: Path, thorough: bool = False) -> Checkpoint | None:
    """The checkpoint at `path`; None unless it is whole: every file there in its size (`thorough`: its digest)."""
    try:
        files: dict[str, dict[str, Any]] = read_json(path / MANIFEST)["files"]
        for name, expected in files.items():
            if (path / name).stat().st_size != expected["size"]:
                return None
            if thorough and file_digest(path / name) != expected["sha256"]:
                return None
        return Checkpoint(path, State.from_json(read_json(path / ENGINE / "state.json")))
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The one that `latest` in the train folder points at, if it is whole: cheap, for telling where training stands."""
    try:
        name = (folder / "latest").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return read_checkpoint(folder / "checkpoints" / name)


def newest_checkpoint(folder: Path, identity: str) -> Checkpoint | None:
    """Where to go on: the newest whole checkpoint of this work, found by looking, not by the pointer.

    Checkpoints of other work (the data or the audit's choice changed since) are moved aside, never continued.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        checkpoint = read_checkpoint(path, thorough=True)
        if checkpoint is None:
            continue
        if checkpoint.state.identity == identity:
            return checkpoint
        aside = folder.with_name(f"{folder.name}-of-{checkpoint.state.identity[:8]}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        return None
    return None


def prune(folder: Path, keep_last: int, keep_best: int) -> None:
    """Delete all but the newest `keep_last` and the `keep_best` best on dev. Torn and unfinished ones go too."""
    for unfinished in folder.glob(".step-*.part"):
        shutil.rmtree(unfinished, ignore_errors=True)
    found = {path: read_checkpoint(path) for path in sorted(folder.glob("step-*"))}
    whole = {path: checkpoint for path, checkpoint in found.items() if checkpoint is not None}
    if not whole:
        return
    newest = list(whole)[-keep_last:]
    scores = ranked(whole[newest[-1]].state.dev)
    steps = {score.step for score in [s for s in scores if folder / f"step-{s.step:06d}" in whole][:keep_best]}
    for path in found:
        if path not in newest and int(path.name.removeprefix("step-")) not in steps:
            _delete(path)


def ranked(scores: tuple[DevScore, ...]) -> list[DevScore]:
    """Best first: lowest WER, then lowest loss, then earliest."""
    return sorted(scores, key=lambda score: (score.wer, score.loss, score.step))


def publish(checkpoint: Checkpoint, folder: Path) -> None:
    """Put the model of a checkpoint at `folder`, whole or not at all; the files are shared, not copied."""
    temporary, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    ignore = shutil.ignore_patterns(ENGINE, MANIFEST)
    shutil.copytree(checkpoint.path, temporary, ignore=ignore, copy_function=_link_or_copy)
    _flush_entry(temporary)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    _flush_entry(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _measured(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _delete(path: Path) -> None:
    """First the name, then the content: killed in between, nothing that looks like a checkpoint is left."""
    doomed = path.with_name(f".{path.name}.part")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush_entry(path)
    _flush_entry(folder)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
