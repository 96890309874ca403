"""Model folders that come from the Hugging Face hub: downloaded at a pinned commit, and their configs in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caspi.errors import UserError

_WANTED = ["*.json", "*.txt", "*.jinja", "*.safetensors"]


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


def in_fp32(config: Any) -> Any:
    """The config with every dtype in it set to float32, at any depth."""
    if not isinstance(config, Mapping):
        return config
    return {
        key: "float32" if key in ("dtype", "torch_dtype") and value is not None else in_fp32(value)
        for key, value in config.items()
    }
