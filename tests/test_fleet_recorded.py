"""`caspi status` on what a real API server, operator and kubelet said: tests/fleet/*.json, each with its lines.

Recorded from jobs of the chart's shape, each with one fault; addresses and the namespace's name were changed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from caspi.fleet.diagnose import diagnose, render
from caspi.fleet.names import CauseId
from caspi.fleet.snapshot import Snapshot

RECORDED = sorted((Path(__file__).parent / "fleet").glob("*.json"))
WELL = {"running", "succeeded", "replaced"}
SEEN_LATER = {"out-of-memory": "replaced"}
"""A container that is killed for memory is replaced at once: what is left is its exit code."""


def read(path: Path) -> Snapshot:
    return Snapshot.from_json(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_the_lines(path: Path) -> None:
    assert render(diagnose(read(path))) == path.with_suffix(".txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_the_fault_is_named(path: Path) -> None:
    """Files are called after the fault that was planted."""
    found = [cause.id for cause in diagnose(read(path)).causes]
    if path.stem in WELL:
        assert not [cause for cause in diagnose(read(path)).causes if cause.blocks]
    else:
        assert SEEN_LATER.get(path.stem, path.stem) in found


def test_a_snapshot_survives_json() -> None:
    look = read(RECORDED[0])
    assert Snapshot.from_json(json.loads(json.dumps(look.to_json()))) == look


def test_the_page_has_every_cause_and_no_other() -> None:
    page = (Path(__file__).parents[1] / "docs/status.md").read_text(encoding="utf-8").split("## Causes")[1]
    documented = {
        name
        for line in page.splitlines()
        for name in re.findall(r"`([a-z][a-z-]+)`", line.split("|")[1] if line.startswith("| `") else line)
    }
    known = {name for part in get_args(CauseId) for name in (get_args(part) or [part])}
    assert documented - {"snapshot"} == known
