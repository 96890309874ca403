"""What a repository of the Hugging Face hub holds at a commit, as one digest: names, sizes and hashes, no downloads."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from caspi.corpus.hub import token
from caspi.errors import StageFailed, UserError
from caspi.files import digest

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""Before the second attempt; doubled for the third."""
Kind = Literal["dataset", "model"]
Answer = TypeVar("Answer")

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def manifest(kind: Kind, repository: str, revision: str, reads: Callable[[str], bool], field: str) -> str:
    """sha256 over (path, size, hash) of the files that `reads` picks. The hash is LFS's sha256, or git's of the blob.

    `field` is where the round names it. UserError when it is not pinned, not there or not ours to read; StageFailed
    when the hub is out of reach.
    """
    where = f"{field}: {repository}@{revision}"
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        now = _asked(where, lambda api: str(api.repo_info(repository, revision=revision, repo_type=kind).sha))
        raise UserError(f'{where}: "{revision}" is no full commit and may move; it is {now} now: write that')
    files = _asked(where, lambda api: _listed(api, kind, repository, revision))
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


def _asked(where: str, call: Callable[[HfApi], Answer]) -> Answer:
    """The answer of the hub; what may pass is tried again."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(ATTEMPTS):
        try:
            return call(HfApi(token=token()))
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status < 500 and status != 429:
                raise _refused(where, status) from None
            why = f"answers {status}"
        except OSError as error:  # what the client raises on a bad connection derives from it
            why = type(error.__cause__ or error.__context__ or error).__name__
        if attempt + 1 < ATTEMPTS:
            time.sleep(PAUSE_SECONDS * 2**attempt)
    raise StageFailed(
        f"{where}: {constants.ENDPOINT} is out of reach ({why}, {ATTEMPTS} times); check the network, HTTPS_PROXY and "
        "HF_ENDPOINT, then lock again"
    )


def _refused(where: str, status: int) -> UserError:
    if status in (401, 403):
        state = "HF_TOKEN has no access to it" if token() else "HF_TOKEN is not set"
        return UserError(f"{where}: the hub does not let us read it ({status}) and {state}; accept its terms first")
    if status == 404:
        return UserError(f"{where}: no such repository or revision on the hub; write a full commit of it")
    return UserError(f"{where}: the hub refuses the request ({status})")
