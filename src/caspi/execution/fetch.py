"""What a round needs from the network or from other rounds, before training goes offline. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from caspi.corpus.roots import roots
from caspi.errors import UserError
from caspi.families.hub_folder import download
from caspi.records.round_dir import RoundDir
from caspi.spec.models import is_made_here, is_repository

PATIENCE = (2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Seconds between tries of a download."""


def fetch(round_dir: RoundDir) -> str:
    """See that everything is on this machine that training starts from, and download what is not. Any number of pods
    may do so at once, and again. What there is now, in a line; raises UserError or StageFailed."""
    found = _model(round_dir)
    roots(round_dir.spec, round_dir.data_root, round_dir.folder("export"))  # audio that training reads from a hub
    return found


def _model(round_dir: RoundDir) -> str:
    parent, model = round_dir.parent(), round_dir.spec.model
    if parent is not None:
        parent.succeeded("train")
        if not (parent.model / "config.json").is_file():
            raise UserError(
                f"the model of {parent.spec.round} is gone from {parent.model}; run that round again first",
                where=str(round_dir.path),
            )
        return f"starts from the model of {parent.spec.round} in {parent.model}"
    if is_made_here(model.base):
        return f"base {model.base} is made by the training itself"
    if is_repository(model.base) and not Path(model.base).is_dir():
        assert model.revision is not None, "the spec requires it"
        return f"{model.base} at {model.revision[:12]} is in {download(model.base, model.revision, PATIENCE)}"
    folder = Path(model.base).expanduser()
    if not folder.is_dir():
        raise UserError(f"model.base = {model.base}: no such folder", where=str(round_dir.path))
    return f"base model in {folder}"
