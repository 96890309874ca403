"""Make the lock of a round: everything that it depends on, by digest, from a clean checkout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from caspi.errors import UserError
from caspi.files import write_text
from caspi.fleet.values import train_values, with_files
from caspi.locks.inputs import locked_data, locked_model, locked_parent
from caspi.locks.model import CHART, SUFFIX, Lock, LockedChart, LockedImages, OciChart, lock_text, plain, read_lock
from caspi.locks.rendering import chart_at, rendered
from caspi.locks.repository import Repository, find_repository
from caspi.plan import make_plan
from caspi.spec import load_cluster, load_round

SHOWN = 8
"""Changed files that a refusal names."""
DIGESTS = ".digests.json"
"""What the export keeps in the folder of the rounds."""


@dataclass(frozen=True, slots=True)
class Written:
    """The lock of a round, and what became of its file."""

    path: Path
    lock: Lock
    outcome: Literal["written", "unchanged"]


def write_lock(
    round_file: Path,
    cluster_file: Path,
    oci: str | None,
    data_root: Path | None,
    runs: Path,
    more: Mapping[Path, Mapping[str, Any]] = {},
) -> Written:
    """Write `<round>.lock.yaml` beside the round file, or find the same one there.

    `oci` is the chart in a registry, `data_root` where the claim's data lies on this machine; digests of large files
    are kept in `runs` if it is there; `more` are files of values with their content, which lies over the others.
    UserError when the tree is not clean, something is not pinned, or another lock of this name is there.
    """
    spec, cluster = load_round(round_file), load_cluster(cluster_file)
    if round_file.name != f"{spec.round}.yaml":
        raise UserError(f"holds the round {spec.round}: name the file {spec.round}.yaml", where=str(round_file))
    values = train_values(spec, cluster, where=str(cluster_file))
    values = with_files(values, [(str(path), content) for path, content in more.items()])
    make_plan(spec, cluster)  # refuses what does not fit, before it is merged
    repository = find_repository(round_file.resolve().parent)
    commit = _committed(repository, [round_file, cluster_file, *more])
    kubernetes = cluster.kubernetes
    assert kubernetes and kubernetes.images, "train_values asks for them"
    chart_in_registry = _oci(oci) if oci else None
    with chart_at(repository, commit) as chart:
        all_objects = rendered(chart.folder, spec.round, kubernetes.namespace, values)
        if chart_in_registry:
            _check_same(chart_in_registry, all_objects, spec.round, kubernetes.namespace, values)
        locked_chart = LockedChart(version=chart.version, digest=chart.digest, oci=chart_in_registry)
    folder = round_file.parent
    root = data_root or (folder / (cluster.data_root or "")).resolve()
    with TemporaryDirectory(prefix="caspi-digests-") as nowhere:  # making `runs` could itself leave the tree unclean
        data = locked_data(spec, cluster.data_root, root, (runs if runs.is_dir() else Path(nowhere)) / DIGESTS)
    lock = Lock(
        round=spec.round,
        digest=spec.digest,
        git=commit,
        namespace=kubernetes.namespace,
        images=LockedImages(train=kubernetes.images.train, launcher=kubernetes.images.launcher),
        data=data,
        model=locked_model(spec, cluster.data_root, root),
        parent=locked_parent(spec, folder),
        chart=locked_chart,
        values=values,
        rendered=all_objects,
    )
    return _written(folder / f"{spec.round}{SUFFIX}", lock)


def _written(path: Path, lock: Lock) -> Written:
    if not path.exists():
        write_text(path, lock_text(plain(lock)))
        return Written(path, lock, "written")
    there = read_lock(path)
    old, new = plain(there), plain(lock)
    differs = [name for name in new if old[name] != new[name]]
    if differs in ([], ["git"]):  # a later commit, in which all that counts is as it was: the lock stands
        return Written(path, there, "unchanged")
    raise UserError(
        f"is there with another {', '.join(name for name in differs if name != 'git')}; merged locks never change: "
        "give the round a new name, or delete this file if it was never merged",
        where=str(path),
    )


def _committed(repository: Repository, files: list[Path]) -> str:
    """HEAD. UserError unless it holds everything as it is on disk; locks themselves do not count."""
    commit = repository.head()
    changed = [name for name in repository.changed() if not name.endswith(SUFFIX)]
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise UserError(
            f"not committed: {', '.join(changed[:SHOWN])}{more}; commit first (or ignore, or stash): a lock names a "
            "commit that holds all of it",
            where=str(repository.top),
        )
    known = set(repository.files(commit))
    for file in files:
        if repository.inside(file) not in known:
            raise UserError("is ignored by git: a lock is made of committed files; commit it", where=str(file))
    return commit


def _check_same(chart: OciChart, all_objects: str, name: str, namespace: str, values: dict[str, Any]) -> None:
    """UserError unless the chart in the registry makes the same objects: Flux installs that one."""
    reference = f"{chart.repository}@{chart.digest}"
    try:
        found = rendered(reference, name, namespace, values)
    except UserError as error:
        raise UserError(f"--chart {reference}: {error.problems[0]}") from None
    if found != all_objects:
        raise UserError(
            f"--chart {reference}: makes other objects than {CHART} of this commit; push that (`make charts "
            "REGISTRY=oci://...`) and take the digest that is printed"
        )


def _oci(reference: str) -> OciChart:
    match = re.fullmatch(
        r"(oci://[a-z0-9.-]+(?::[0-9]+)?(?:/[a-z0-9._-]+)*/caspi-train)(?::[\w.+-]+)?@(sha256:[0-9a-f]{64})", reference
    )
    if match is None:
        raise UserError(
            f"--chart {reference}: write oci://registry/path/caspi-train@sha256:..., as `helm push` prints it"
        )
    return OciChart(repository=match[1], digest=match[2])
