"""The average of the best checkpoints: one more candidate, scored on dev as they were.

    checkpoints/average-of-3/      a checkpoint like any other; engine/average.json says what it was made of

It is made from the files of the checkpoints, loaded from its own file and scored as it was loaded: what is judged is
what would be published.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from caspi.errors import UserError
from caspi.files import file_digest, read_json, write_json
from caspi.records.results import AverageScore, DevScore
from caspi.training.checkpoint import ENGINE, MANIFEST, Checkpoint, read_checkpoint, seal
from caspi.training.distributed import Processes

MADE_OF = "average.json"


@dataclass(frozen=True, slots=True)
class Average:
    """The candidate on disk, and its score."""

    checkpoint: Checkpoint
    score: AverageScore


def average(
    folder: Path, best: Sequence[Checkpoint], ranks: Processes, score: Callable[[Path], DevScore]
) -> Average | None:
    """Average `best` (the best one first) into `folder`/average-of-N; None when there are fewer than two.

    Called again it finds what it made; killed in between, it makes it anew, to the same bits. `score` takes the folder
    of a model and is called on every rank.
    """
    if len(best) < 2:
        return None
    path = folder / f"average-of-{len(best)}"
    found = ranks.from_leader(_made_of(path, best))
    if not found:
        temporary = folder / f".{path.name}.part"
        if ranks.leader:
            _write(temporary, best)
        ranks.wait()
        scored = score(temporary)
        if ranks.leader:
            values = {"of": _sources(best), "score": scored.model_dump()}
            _complete(temporary, path, best[0], values)
        ranks.wait()
    checkpoint = read_checkpoint(path)
    assert checkpoint is not None, "it was found whole, or has just been written"
    values = read_json(path / ENGINE / MADE_OF)
    return Average(checkpoint, AverageScore(**values["score"], of=[one.step for one in best]))


def mean_of_files(files: Sequence[Path], target: Path) -> None:
    """Average the tensors of several safetensors files by name, each summed in fp64; integers are the first file's."""
    opened: list[Any] = [safe_open(file, framework="pt") for file in files]
    names = list(opened[0].keys())
    assert all(sorted(one.keys()) == sorted(names) for one in opened), "checkpoints of one round have the same tensors"
    means = {}
    for name in names:
        first: torch.Tensor = opened[0].get_tensor(name)
        if not first.is_floating_point():
            means[name] = first
            continue
        total = first.double()
        for one in opened[1:]:
            total += one.get_tensor(name).double()
        means[name] = (total / len(opened)).to(first.dtype)
    save_file(means, target, metadata=opened[0].metadata())


def _made_of(path: Path, best: Sequence[Checkpoint]) -> bool:
    """Whether the whole average of just these checkpoints is there already."""
    if read_checkpoint(path, thorough=True) is None:
        return False
    return bool(read_json(path / ENGINE / MADE_OF).get("of") == _sources(best))


def _sources(best: Sequence[Checkpoint]) -> dict[str, str]:
    """The manifest of a checkpoint has the digests of all its files."""
    return {one.path.name: file_digest(one.path / MANIFEST) for one in best}


def _write(temporary: Path, best: Sequence[Checkpoint]) -> None:
    """The model's folder: side files of the best, the mean of the weights."""
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        weights = sorted(path.name for path in best[0].path.glob("*.safetensors"))
        shutil.copytree(best[0].path, temporary, ignore=shutil.ignore_patterns(ENGINE, MANIFEST, "*.safetensors"))
        for name in weights:
            mean_of_files([one.path / name for one in best], temporary / name)
    except (OSError, SafetensorError) as error:
        raise _unwritable(temporary, error) from None


def _complete(temporary: Path, path: Path, best: Checkpoint, values: Mapping[str, object]) -> None:
    try:
        (temporary / ENGINE).mkdir()
        write_json(temporary / ENGINE / MADE_OF, values)
        write_json(temporary / ENGINE / "state.json", best.state.as_json())
        seal(temporary, path)
    except OSError as error:
        raise _unwritable(temporary, error) from None


def _unwritable(temporary: Path, error: Exception) -> UserError:
    shutil.rmtree(temporary, ignore_errors=True)
    return UserError(
        f"the average of the best checkpoints could not be written ({error}); free some space and run the same "
        "command again, training itself is done",
        where=str(temporary.parent),
    )
