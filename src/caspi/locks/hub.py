"""What a repository of the Hugging Face hub holds at a commit, as one digest: names, sizes and hashes, no downloads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from caspi.corpus.hub import asked, token
from caspi.errors import UserError
from caspi.files import digest

Kind = Literal["dataset", "model"]

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def manifest(kind: Kind, repository: str, revision: str, reads: Callable[[str], bool], field: str) -> str:
    """sha256 over (path, size, hash) of the files that `reads` picks. The hash is LFS's sha256, or git's of the blob.

    `field` is where the round names it. UserError when it is not pinned, not there or not ours to read; StageFailed
    when the hub is out of reach.
    """
    from huggingface_hub import HfApi

    where, api = f"{field}: {repository}@{revision}", HfApi(token=token())
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        now = asked(where, lambda: str(api.repo_info(repository, revision=revision, repo_type=kind).sha))
        raise UserError(f'{where}: "{revision}" is no full commit and may move; it is {now} now: write that')
    files = asked(where, lambda: _listed(api, kind, repository, revision))
    read = sorted(one for one in files if reads(one[0]))
    if not read:
        some = ", ".join(sorted(name for name, _, _ in files)[:4]) or "nothing"
        raise UserError(f"{where}: holds no file that the round reads; it has {some}")
    return digest(read)


def _listed(api: HfApi, kind: Kind, repository: str, revision: str) -> list[tuple[str, int, str]]:
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(repository, recursive=True, revision=revision, repo_type=kind)
    files = [one for one in tree if isinstance(one, RepoFile)]
    return [(one.path, one.size, one.lfs.sha256 if one.lfs else one.blob_id) for one in files]
