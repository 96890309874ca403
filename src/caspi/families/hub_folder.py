"""Model folders as the Hugging Face hub has them: downloaded at a pinned commit, their side files kept and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caspi.errors import UserError

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


def download(repository: str, revision: str) -> Path:
    """The folder of a repository's snapshot in the Hugging Face cache, downloaded as far as it is missing.

    The token, the endpoint and the cache are those of huggingface_hub (HF_TOKEN, HF_ENDPOINT, HF_HOME).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"{repository} at {revision}"
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_WANTED))
    except GatedRepoError:
        raise UserError(f"{where}: access is restricted; accept its terms, and set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise UserError(f"{where}: no such revision; model.revision is a commit of the repository") from None
    except RepositoryNotFoundError:
        raise UserError(f"{where}: no such repository, or a private one: set HF_TOKEN") from None
    except OSError as error:  # what requests and huggingface_hub raise derives from it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{where}: download failed ({reason}); run again to go on where it stopped") from None


def _in_fp32(config: Any) -> Any:
    """The config with every dtype in it set to float32, at any depth."""
    if not isinstance(config, Mapping):
        return config
    return {
        key: "float32" if key in ("dtype", "torch_dtype") and value is not None else _in_fp32(value)
        for key, value in config.items()
    }
