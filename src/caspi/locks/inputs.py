"""What a round reads from outside its repository, pinned: data, the base model, the parent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from caspi.corpus.roots import identities, places
from caspi.corpus.sources import file_pattern
from caspi.corpus.tables import SUFFIXES
from caspi.errors import UserError
from caspi.files import folder_digest
from caspi.locks.hub import manifest
from caspi.locks.model import SUFFIX, LockedData, LockedModel, LockedParent, read_lock
from caspi.spec import RoundSpec, load_round
from caspi.spec.data import Source
from caspi.spec.models import is_made_here, is_repository

ELSEWHERE = "say where the same files lie here: --data-root DIR"


def locked_data(spec: RoundSpec, pods_root: str | None, root: Path, digests: Path) -> list[LockedData]:
    """Every source and test set. What is on the hub is asked for there; files are digested as the export does.

    `pods_root` is the data root of the cluster file, which pods see; `root` is where the same files lie here;
    `digests` keeps those of unchanged files. Raises UserError, StageFailed.
    """
    at = places(spec)
    _check_there(at, pods_root, root)
    found = identities(_seen_here(spec, pods_root), root, digests)
    return [_hub(field, one) if one.hub else _path(one, found[one.name]) for field, one in at.items()]


def locked_model(spec: RoundSpec, pods_root: str | None, root: Path) -> LockedModel:
    """The base model, by its commit or the digest of its folder. Raises UserError, StageFailed."""
    base, revision = spec.model.base, spec.model.revision
    if is_made_here(base):
        return LockedModel(base=base)
    if is_repository(base):
        assert revision is not None, "the spec requires it"
        files = manifest("model", base, revision, lambda _: True, "model.base")
        return LockedModel(base=base, revision=revision, manifest=files)
    folder = root / _below(base, pods_root)
    if not folder.is_dir():
        raise UserError(f'model.base = "{base}": not on this machine (looked for {folder}); {ELSEWHERE}')
    return LockedModel(base=base, manifest=folder_digest(folder))


def locked_parent(spec: RoundSpec, folder: Path) -> LockedParent | None:
    """The parent, by the round file beside this one. UserError when it is not there."""
    if spec.parent is None:
        return None
    path = folder / f"{spec.parent}.yaml"
    if not path.is_file():
        raise UserError(f'parent = "{spec.parent}": there is no {path}; a lock pins its digest')
    parent = load_round(path)
    if parent.round != spec.parent:
        raise UserError(f'parent = "{spec.parent}": {path} holds the round {parent.round}')
    lock = folder / f"{spec.parent}{SUFFIX}"
    if lock.exists() and read_lock(lock).digest != parent.digest:
        raise UserError(
            f'parent = "{spec.parent}": {path} is not the round that {lock.name} locked, and so not the one that was '
            "trained; restore it, and give the changed round a new name"
        )
    return LockedParent(round=parent.round, digest=parent.digest)


def _hub(field: str, source: Source) -> LockedData:
    assert source.hub is not None
    assert source.revision is not None, "the spec requires it"
    matches = file_pattern(source.files).fullmatch

    def reads(name: str) -> bool:
        return bool(matches(name)) and name.endswith(SUFFIXES)

    files = manifest("dataset", source.hub, source.revision, reads, field)
    return LockedData(name=source.name, where="hub", source=source.hub, revision=source.revision, manifest=files)


def _path(source: Source, digest: str) -> LockedData:
    assert source.path is not None, "a source has a path or a hub"
    return LockedData(name=source.name, where="path", source=source.path, manifest=digest)


def _check_there(at: Mapping[str, Source], pods_root: str | None, root: Path) -> None:
    """Every folder that is missing at once, with the way out."""
    problems = []
    for field, source in at.items():
        if source.path is not None:
            here = root / _below(source.path, pods_root)
            if not here.exists():
                problems.append(f'{field}.path = "{source.path}": not on this machine (looked for {here}); {ELSEWHERE}')
    if problems:
        raise UserError(*problems)


def _seen_here(spec: RoundSpec, pods_root: str | None) -> RoundSpec:
    """The round with absolute paths below the claim's data root made relative: here the root is another folder."""

    def here(items: list[dict[str, object]]) -> list[dict[str, object]]:
        return [one | {"path": _below(str(one["path"]), pods_root)} if one.get("path") else one for one in items]

    values = spec.model_dump(mode="json", exclude_none=True)
    values["data"]["sources"] = here(values["data"]["sources"])
    values["benchmark"]["sets"] = here(values["benchmark"]["sets"])
    return RoundSpec.model_validate(values)


def _below(path: str, pods_root: str | None) -> str:
    """A path relative to the data root, where it lies below it."""
    if pods_root and PurePosixPath(path).is_absolute() and PurePosixPath(path).is_relative_to(pods_root):
        return str(PurePosixPath(path).relative_to(pods_root))
    return path
