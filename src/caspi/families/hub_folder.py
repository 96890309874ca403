"""Model folders as the Hugging Face hub has them: downloaded at a pinned commit, their side files kept and written."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from caspi.errors import StageFailed, UserError
from caspi.files import no_space_left, read_json, write_json

_WANTED = ["*.json", "*.txt", "*.jinja", "*.safetensors"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The side files of a model, held in memory: a checkpoint gets them as they were, when its base is long gone."""

    config: Mapping[str, Any]
    files: Mapping[str, bytes]

    def write(self, folder: Path) -> None:
        """Write all of them; the config says fp32, as the weights beside it are."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        text = json.dumps(_in_fp32(self.config), ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def download(repository: str, revision: str, patience: Sequence[float] = ()) -> Path:
    """The folder of a repository's snapshot in the Hugging Face cache, downloaded as far as it is missing.

    The token, the endpoint and the cache are those of huggingface_hub (HF_TOKEN, HF_ENDPOINT, HF_HOME). What may pass
    (a broken connection, a busy hub) is tried again after each of `patience` seconds. A snapshot that is whole is
    taken as it is: no network is asked. Raises UserError; StageFailed when it can't be written.
    """
    found = downloaded(repository, revision)
    waits = iter(patience)
    while found is None:
        try:
            found = _download(repository, revision)
        except _Broken as error:
            wait = next(waits, None)
            there, _ = _places(repository, revision)
            if not patience and there.is_dir():
                return there  # without a network, what the cache has; who loads it checks that it is whole
            if wait is None:
                raise UserError(f"{error}; run again to go on where it stopped") from None
            print(f"{error}; next try in {wait:g} s", file=sys.stderr)
            time.sleep(wait)
    return found


def downloaded(repository: str, revision: str) -> Path | None:
    """The same folder if it is known to be whole."""
    folder, complete = _places(repository, revision)
    whole = complete.exists() and all((folder / name).exists() for name in read_json(complete))
    return folder if whole else None


class _Broken(Exception):
    """The download failed in a way that may pass."""


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repository} at {revision}"
    try:
        try:
            wanted = _wanted(HfApi().model_info(repository, revision=revision, files_metadata=True))
        except OfflineModeIsEnabled:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
        _check_room(where, repository, revision, wanted)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
    except GatedRepoError:
        raise UserError(f"{where}: access is restricted; accept its terms, and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UserError(f"{where}: no such revision; model.revision is a commit of the repository") from None
    except RepositoryNotFoundError:
        raise UserError(f"{where}: no such repository, or a private one: set HF_TOKEN") from None
    except OSError as error:  # what requests and huggingface_hub raise derives from it
        if no_space_left(error):
            disk = error.filename or "the disk of the cache"
            raise StageFailed(f"{where}: no space left on {disk}; free some space or enlarge the claim") from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        answer = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        if answer in (401, 403):
            raise UserError(
                f"{where}: the hub does not let us read it ({answer}); accept its terms, set HF_TOKEN"
            ) from None
        if 400 <= answer < 500 and answer not in (408, 429):
            raise UserError(f"{where}: download failed ({reason})") from None
        raise _Broken(f"{where}: download failed ({reason})") from None
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:  # out of reach in the middle, the client gives what there is
        raise _Broken(f"{where}: download failed ({missing[0]} is missing)")
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        write_json(_places(repository, revision)[1], sorted(wanted))
    return folder


def _wanted(info: Any) -> dict[str, int]:
    """Names and bytes of the files that a model needs."""
    sizes = {one.rfilename: one.size or 0 for one in info.siblings}
    return {name: size for name, size in sizes.items() if any(fnmatch(name, pattern) for pattern in _WANTED)}


def _check_room(where: str, repository: str, revision: str, wanted: Mapping[str, int]) -> None:
    """StageFailed when the disk of the cache can't hold what is missing: better now than after 30 GB."""
    folder, _ = _places(repository, revision)
    needed = sum(size for name, size in wanted.items() if not (folder / name).exists())
    partial = sum(path.stat().st_size for path in folder.parent.parent.glob("blobs/*.incomplete"))
    disk = next(path for path in folder.parents if path.exists())
    free = shutil.disk_usage(disk).free
    if needed - partial > free:
        raise StageFailed(
            f"{where}: no space left on {disk}: {needed / 1e9:,.1f} GB to download, {free / 1e9:,.1f} GB free; free "
            "some space or enlarge the claim"
        )


def _places(repository: str, revision: str) -> tuple[Path, Path]:
    """Where a snapshot lies, and our note that it is whole: the client keeps none. Written after the last file."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    return cache / "snapshots" / revision, cache / "caspi" / f"{revision}.json"


def _in_fp32(config: Any) -> Any:
    """The config with every dtype in it set to float32, at any depth."""
    if not isinstance(config, Mapping):
        return config
    return {
        key: "float32" if key in ("dtype", "torch_dtype") and value is not None else _in_fp32(value)
        for key, value in config.items()
    }
