"""The stages of a round, by name. Imported one at a time: only train needs torch."""

from __future__ import annotations

from importlib import import_module
from typing import get_args

from caspi.errors import UserError
from caspi.records.record import StageName
from caspi.stages.stage import Stage


def stage_called(name: str) -> Stage:
    """The stage called `name`; UserError names those there are."""
    names = get_args(StageName)
    if name not in names:
        raise UserError(f'no stage "{name}"; stages are {", ".join(names)}')
    stage = import_module(f"caspi.stages.{name}").STAGE
    assert isinstance(stage, Stage)
    return stage
