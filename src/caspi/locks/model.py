"""What a lock file says, and its bytes: equal locks are equal files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints

from caspi.errors import UserError
from caspi.spec import parse
from caspi.spec.cluster import ImageReference
from caspi.spec.values import Frozen, Name

SUFFIX = ".lock.yaml"
CHART = "charts/caspi-train"
"""Where the chart lies in a repository of rounds: the folder that Argo CD reads at the commit of a lock."""
HEAD = "# Written by `caspi lock`. Not for editing: once merged it stays as it is (docs/locks.md).\n"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
OciDigest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
OciRepository = Annotated[str, StringConstraints(pattern=r"^oci://[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+$")]


class LockedImages(Frozen):
    """The images of the round's pods, by digest."""

    train: ImageReference
    """images/train."""
    launcher: ImageReference | None = None
    """images/launcher; none: the train image prepares, too."""


class LockedData(Frozen):
    """A source or a test set."""

    name: Name
    """As in the round."""
    where: Literal["hub", "path"]
    """On the Hugging Face hub, or files on the claim."""
    source: str = Field(min_length=1)
    """The repository, or the path as the round has it."""
    revision: Commit | None = None
    """The commit of a repository."""
    manifest: Sha256
    """hub: over path, size and hash of each file that is read. path: what the export's record calls its input."""


class LockedModel(Frozen):
    """What training starts from, when there is no parent."""

    base: str = Field(min_length=1)
    """As in the round."""
    revision: Commit | None = None
    """The commit of a repository."""
    manifest: Sha256 | None = None
    """Over its files; none for a small model that is made on the spot."""


class LockedParent(Frozen):
    """The round whose model this one starts from."""

    round: Name
    digest: Sha256
    """sha256 of the resolved parent."""


class OciChart(Frozen):
    """The chart in a registry."""

    repository: OciRepository
    digest: OciDigest
    """Of its manifest, as `helm push` prints it."""


class LockedChart(Frozen):
    """The chart at `git`."""

    name: Literal["caspi-train"] = "caspi-train"
    version: str = Field(min_length=1)
    digest: Sha256
    """Over the names and contents of the files of charts/caspi-train."""
    oci: OciChart | None = None
    """The same chart in a registry; Flux needs it."""


class Lock(Frozen):
    """One round, pinned by digests: what a merge starts, exactly that and once."""

    lock: Literal[1] = 1
    """Of this format."""
    round: Name
    """Also the name of the file, of the release and of the job."""
    digest: Sha256
    """sha256 of the resolved round."""
    git: Commit
    """Where the round, the cluster file and the chart are as they were locked."""
    namespace: Name
    """Where the round trains."""
    images: LockedImages
    data: list[LockedData]
    """All sources and test sets."""
    model: LockedModel
    parent: LockedParent | None = None
    chart: LockedChart
    values: dict[str, Any]
    """What Helm is given, as `caspi submit --dry-run` prints it."""
    rendered: Sha256
    """sha256 of all objects that the chart makes of the values."""


def lock_text(values: Mapping[str, Any]) -> str:
    """The file of a lock."""
    return HEAD + yaml_text(values)


def yaml_text(values: Mapping[str, Any]) -> str:
    """YAML that every reader takes for the same: texts of several lines as blocks, digests in quotes."""
    return yaml.dump(dict(values), Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)


def plain(lock: Lock) -> dict[str, Any]:
    """A lock as plain values, in the order in which the file has them."""
    values: dict[str, Any] = lock.model_dump(mode="json")
    return values


def read_lock(path: Path) -> Lock:
    """Read a lock file. UserError when it is none, or not as `caspi lock` wrote it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such lock; `caspi lock ROUND --cluster C` writes one", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't be read: {error}", where=str(path)) from None
    return parse_lock(text, str(path))


def parse_lock(text: str, where: str) -> Lock:
    """A lock from its text; `where` names it in errors."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}", where=where) from None
    lock = parse(values, Lock, where)
    if lock_text(values) != text:
        # A key that stands twice means one thing here and may mean another to Argo CD: only our own bytes count.
        raise UserError(
            "is not as `caspi lock` writes it: it was edited; take the text that it was merged with", where=where
        )
    return lock


class _Writer(yaml.SafeDumper):
    """Texts of several lines as blocks; hexadecimal digests in quotes: 12e34 is a number to other readers of YAML."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else '"' if re.fullmatch(r"[0-9a-f]{40,64}", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _text)
