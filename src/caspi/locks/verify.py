"""Check locks, for CI: what was merged stays as it is, and each lock renders to what it says, from its own commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from caspi.corpus.roots import places
from caspi.errors import UserError
from caspi.files import digest
from caspi.locks.model import SUFFIX, Lock, parse_lock, read_lock
from caspi.locks.rendering import chart_at, rendered
from caspi.locks.repository import NotThere, Repository, find_repository
from caspi.spec import RoundSpec, load_round, parse

FETCH = "fetch the whole history (actions/checkout: fetch-depth: 0; GitLab: GIT_DEPTH: 0)"


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what is wrong: a line each."""

    checked: list[str]
    problems: list[str]


def verify(paths: Sequence[Path], base: str | None) -> Verified:
    """Check lock files of one repository; `base` is the branch that they are merged into."""
    folders = sorted({path.resolve().parent for path in paths} or {Path("rounds").resolve()})
    there = [folder for folder in folders if folder.is_dir()]
    repository = find_repository(there[0] if there else Path.cwd())
    into = _base(repository, base) if base else None
    merged = _merged(repository, into, folders) if into else {}
    problems = _changed(repository, merged, base or "")
    rounds = {lock.round: path for path, lock in _readable(merged).items() if not path.exists()}
    checked = []
    for path in paths:
        if path.resolve() in merged and not path.exists():
            continue  # a lock may be deleted: what it started stays
        checked.append(str(path))
        try:
            lock = read_lock(path)
        except UserError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
            continue
        if path.is_symlink():
            problems.append(f"{path}: is a link; a lock is a file of its own")
        if (other := rounds.setdefault(lock.round, path)) != path:
            gone = "" if other.exists() else f", which is gone from {base}: a lock is not renamed"
            problems.append(f"{path}: locks {lock.round}, and so does {other.name}{gone}; a round has one lock")
        problems += [f"{path}: {problem}" for problem in _check(lock, path, repository, base, into)]
    return Verified(checked, problems)


def _base(repository: Repository, base: str) -> str:
    try:
        return repository.commit(base)
    except NotThere:
        raise UserError(f"--base {base}: no such commit in this clone; {FETCH}") from None


def _merged(repository: Repository, into: str, folders: Sequence[Path]) -> dict[Path, str]:
    """The locks of the base in these folders, as text."""
    names = [name for name in repository.files(into) if name.endswith(SUFFIX)]
    return {
        repository.top / name: repository.text(into, name)
        for name in names
        if (repository.top / name).parent in folders
    }


def _changed(repository: Repository, merged: Mapping[Path, str], base: str) -> list[str]:
    """Locks of the base that are other now, whether or not they are among the files that are looked at."""
    return [
        f"{path.relative_to(repository.top)}: differs from {base}; merged locks never change: restore it, and give "
        "the changed round a new name"
        for path, text in merged.items()
        if path.is_file() and path.read_bytes() != text.encode("utf-8", "surrogateescape")
    ]


def _readable(merged: Mapping[Path, str]) -> dict[Path, Lock]:
    found = {}
    for path, text in merged.items():
        with suppress(UserError):  # what can't be read now could not be when it was merged
            found[path] = parse_lock(text, str(path))
    return found


def _check(lock: Lock, path: Path, repository: Repository, base: str | None, into: str | None) -> Iterator[str]:
    if path.name != f"{lock.round}{SUFFIX}":
        yield f"locks the round {lock.round}: its file is called {lock.round}{SUFFIX}"
    if into and _was_another(repository, into, path):
        yield f"{base} had another lock of this name before: what it started is still there; give the round a new name"
    yield from _agreement(lock)
    try:
        repository.commit(lock.git)
    except NotThere:
        way_out = FETCH if repository.is_shallow() else "push it"
        yield f"git: commit {lock.git[:12]} is not in this clone; {way_out}"
        return
    if not repository.holds(into or repository.head(), lock.git):
        where = (
            FETCH if repository.is_shallow() else "a squash loses it: merge the round first, then lock it from there"
        )
        yield f"git: commit {lock.git[:12]} is not in the history of {base or 'HEAD'}; {where}"
    yield from _round_files(lock, repository.inside(path.parent), repository)
    yield from _rendering(lock, repository)


def _was_another(repository: Repository, into: str, path: Path) -> bool:
    """Whether a lock that the base has no more, in its history, was other than this one of its name."""
    name = (path.resolve().parent / path.name).relative_to(repository.top).as_posix()
    if name in repository.files(into):
        return False  # compared as it is there
    was = repository.last(into, name)
    return was is not None and was != path.read_text(encoding="utf-8")


def _agreement(lock: Lock) -> Iterator[str]:
    """What the lock says twice has to be the same: the pods get `values`, people read the rest."""
    given = lock.values.get("round")
    inner: dict[str, Any] = given if isinstance(given, dict) else {}
    if inner.get("name") != lock.round:
        yield f"values.round.name is {inner.get('name')}, and the lock is of {lock.round}"
    if inner.get("digest") != lock.digest:
        yield f"values.round.digest is {str(inner.get('digest'))[:12]}, and digest {lock.digest[:12]}"
    if _text_digest(inner.get("file")) != lock.digest:
        yield f"values.round.file does not digest to {lock.digest[:12]}: it is another round"
    for field, image in (("image", lock.images.train), ("launcher", lock.images.launcher)):
        if (there := _reference(lock.values.get(field))) != image:
            yield f"values.{field} is {there}, and images say {image}"
    yield from _pins(lock, str(inner.get("file")))


def _pins(lock: Lock, text: str) -> Iterator[str]:
    """Sources, test sets, base and parent are those of the round."""
    try:
        spec = parse(yaml.safe_load(text), RoundSpec, "values.round.file")
    except (UserError, yaml.YAMLError) as error:
        yield f"values.round.file can't be read: {str(error).splitlines()[0]}"
        return
    reads = [(one.name, one.hub or one.path, one.revision) for one in places(spec).values()]
    if reads != [(one.name, one.source, one.revision) for one in lock.data]:
        yield "data: not the sources and test sets of the round"
    if (spec.model.base, spec.model.revision) != (lock.model.base, lock.model.revision):
        yield f"model is {lock.model.base}@{lock.model.revision}, not {spec.model.base}@{spec.model.revision}"
    if spec.parent != (lock.parent.round if lock.parent else None):
        yield f"parent is {lock.parent.round if lock.parent else None}, not {spec.parent}"


def _text_digest(text: object) -> str:
    """The digest of a round by its text, read as plain YAML: the text has every field, so no later default counts."""
    try:
        return digest(yaml.safe_load(str(text)))
    except (yaml.YAMLError, ValueError, TypeError):
        return ""


def _reference(image: object) -> str | None:
    return f"{image.get('repository')}@{image.get('digest')}" if isinstance(image, dict) else None


def _round_files(lock: Lock, folder: str, repository: Repository) -> Iterator[str]:
    """The round beside the lock, and its parent, are at the commit of the lock what was locked."""
    locked = [("digest", lock.round, lock.digest)]
    if lock.parent:
        locked.append(("parent.digest", lock.parent.round, lock.parent.digest))
    for field, round_name, digested in locked:
        name = f"{round_name}.yaml" if folder == "." else f"{folder}/{round_name}.yaml"
        try:
            found = _digest_of(repository.text(lock.git, name))
        except NotThere:
            yield f"git: commit {lock.git[:12]} has no {name}"
        except UserError as error:
            yield f"{name} of commit {lock.git[:12]} can't be read: {error.problems[0]}"
        else:
            if found != digested:
                yield f"{field} is {digested[:12]}, and {name} of commit {lock.git[:12]} digests to {found[:12]}"


def _digest_of(text: str) -> str:
    with TemporaryDirectory(prefix="caspi-round-") as place:
        file = Path(place) / "round.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        return load_round(file).digest


def _rendering(lock: Lock, repository: Repository) -> Iterator[str]:
    try:
        with chart_at(repository, lock.git) as chart:
            if chart.digest != lock.chart.digest:
                yield f"chart.digest is {lock.chart.digest[:12]}, and {chart.digest[:12]} at commit {lock.git[:12]}"
            if chart.version != lock.chart.version:
                yield f"chart.version is {lock.chart.version}, and {chart.version} at commit {lock.git[:12]}"
            made = rendered(chart.folder, lock.round, lock.namespace, lock.values)
    except UserError as error:
        yield error.problems[0]
        return
    if made != lock.rendered:
        yield f"rendered is {lock.rendered[:12]}, and the chart makes {made[:12]} of values: one of them was changed"
