"""The compiled pipeline: beside the code in a checkout, inside the package in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import caspi
from caspi.errors import UserError
from caspi.files import file_digest

NAME = "caspi-round"
"""Of the pipeline, and of its file."""
PACKAGE = Path(caspi.__file__).parent


def pipeline_file() -> Path:
    """The compiled pipeline, as `make pipelines` writes it."""
    for path in (PACKAGE.parents[1] / "pipelines" / f"{NAME}.yaml", PACKAGE / "pipeline" / f"{NAME}.yaml"):
        if path.is_file():
            return path
    raise UserError("the compiled pipeline is not in this installation of Caspi; install it from its wheel")


def pipeline_digest() -> str:
    """sha256 of the compiled pipeline: what a version of it is known by."""
    return file_digest(pipeline_file())


def version_name() -> str:
    """Of the pipeline's version on a server: the same file is the same version, and another one is another."""
    return f"{NAME}-{pipeline_digest()[:12]}"
