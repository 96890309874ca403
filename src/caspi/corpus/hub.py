"""Dataset repositories on the Hugging Face hub, at a pinned commit, through the real client.

Downloads land in the client's own cache and are resumed where they broke off. The token comes from the environment
(HF_TOKEN) and goes nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from caspi.corpus.sources import file_pattern
from caspi.corpus.tables import SUFFIXES
from caspi.errors import StageFailed, UserError
from caspi.files import digest, read_json, write_json

ATTEMPTS = 5
PAUSE_SECONDS = 1.0
"""Before the second attempt; doubled for each later one."""
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}

Answer = TypeVar("Answer")


def snapshot(repository: str, revision: str, files: str) -> Path:
    """The local folder of the files of a dataset repository that match the glob `files`, downloaded when missing.

    UserError when it is not pinned, not there or not ours to read; StageFailed when the network gives up.
    """
    found = downloaded(repository, revision, files)
    if found is not None:
        return found
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise _not_pinned(repository, revision)
    names = _download(repository, revision, files)
    folder, complete = _places(repository, revision, files)
    write_json(complete, names)
    return folder


def downloaded(repository: str, revision: str, files: str) -> Path | None:
    """The same folder if it is whole on this machine; asks no network."""
    folder, complete = _places(repository, revision, files)
    whole = complete.exists() and all((folder / name).exists() for name in read_json(complete))
    return folder if whole else None


def _places(repository: str, revision: str, files: str) -> tuple[Path, Path]:
    """Where a snapshot lies, and our note that it is whole: the client keeps none. Written after the last file."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="dataset")
    return cache / "snapshots" / revision, cache / "caspi" / f"{revision}-{digest(files)[:16]}.json"


def _download(repository: str, revision: str, files: str) -> list[str]:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    there = asked(
        repository,
        lambda: HfApi(token=token()).list_repo_files(repository, repo_type="dataset", revision=revision),
    )
    matches = file_pattern(files).fullmatch
    names = sorted(name for name in there if matches(name) and name.endswith(SUFFIXES))
    if not names:
        some = ", ".join(sorted(there)[:4])
        raise UserError(f"{repository}: no {' or '.join(SUFFIXES)} file matches files: {files}; it has {some}")
    print(f"downloading {len(names)} files of {repository}@{revision[:8]}", file=sys.stderr)
    asked(
        repository,
        lambda: snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[_literal(name) for name in names],
            token=token(),
            max_workers=4,
        ),
    )
    return names


def asked(where: str, call: Callable[[], Answer]) -> Answer:
    """The answer of the hub. A broken connection is tried again; what came through stays and is not sent twice.

    `where` names the repository, and perhaps what named it.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(ATTEMPTS):
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status < 500 and status != 429:
                raise _refused(where, status) from None
            why = f"answers {status}"
        except OSError as error:  # the base of what the client raises on a bad connection, too
            if error.errno in _DISK:
                raise StageFailed(f"{where}: the download can't be written: {error.strerror}") from None
            why = type(error.__cause__ or error.__context__ or error).__name__
        if attempt + 1 < ATTEMPTS:
            time.sleep(PAUSE_SECONDS * 2**attempt)
    raise StageFailed(
        f"{where}: {constants.ENDPOINT} is out of reach ({why}, {ATTEMPTS} times); check the network, HTTPS_PROXY "
        "and HF_ENDPOINT, then run the same command again: it goes on where it stopped"
    )


def _refused(where: str, status: int) -> UserError:
    if status in (401, 403):
        state = "HF_TOKEN has no access to it" if token() else "HF_TOKEN is not set"
        return UserError(
            f"{where}: the hub does not let us read it ({status}) and {state}; accept its terms on its page, "
            "then export HF_TOKEN=..."
        )
    if status == 404:
        return UserError(f"{where}: no such repository, revision or file on the hub; check name, commit and files")
    return UserError(f"{where}: the hub refuses the request ({status})")


def _not_pinned(repository: str, revision: str) -> UserError:
    """A branch or tag moves. Say where it stands now, if that can be learnt quickly."""
    from huggingface_hub import HfApi

    way_out = f"take one from https://huggingface.co/datasets/{repository}/commits/main"
    try:
        now = HfApi(token=token()).dataset_info(repository, revision=revision, timeout=10).sha
        way_out = f"it is {now} now: write that"
    except OSError:
        pass
    return UserError(f'{repository}: revision "{revision}" is no full commit and may move; {way_out}')


def token() -> str | bool:
    """From the environment only: False keeps the client from looking at what a login left on this machine."""
    return os.environ.get("HF_TOKEN") or False


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
