"""metrics.jsonl is always whole; whatever a tracker does, training goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from caspi import tracking
from caspi.tracking import Metrics
from tests.ranks import free_port
from tests.training_work import spec_of, trained_by, work_in

SHORT = {"phases": [{"name": "full", "epochs": 1, "rates": {"all": 1e-3}}]}


def test_metrics_go_on_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "step": step, "loss": 1 / step} for step in range(1, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind":"train","step":2')
    metrics = Metrics(path, 5)
    metrics.write({"kind": "train", "step": 6, "loss": 9.0})
    metrics.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [*lines[:5], {"kind": "train", "step": 6, "loss": 9.0}]


class Broken:
    """A tracker that fails when it starts, at the third line, or when it ends."""

    def __init__(self, when: str) -> None:
        self.when, self.lines = when, 0
        if when == "start":
            raise ConnectionError("no route to host")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.lines += 1
        if self.when == "third line" and self.lines == 3:
            raise OSError("quota exceeded\nand more")

    def close(self) -> None:
        if self.when == "end":
            raise RuntimeError("upload failed")
        if self.when == "hang":
            time.sleep(60)


@pytest.mark.parametrize("when", ["start", "third line", "end", "hang"])
def test_a_broken_tracker_is_one_warning(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(tracking.TRACKERS, "wandb", lambda folder, run, spec: Broken(when))
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.2)
    trained = trained_by(work_in(tmp_path, spec=spec_of(**SHORT), cluster={"track": ["wandb"]}))
    assert trained.steps == 8
    assert (tmp_path / "train/metrics.jsonl").read_bytes().count(b"\n") == 8 + 1
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning: " in line]
    assert len(warnings) == 1 and "wandb is off for the rest of this run" in warnings[0]


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained_by(work_in(tmp_path, spec=spec_of(**SHORT), cluster={"track": ["tensorboard"]}))
    events = EventAccumulator(str(tmp_path / "train/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))
    assert {"train/rates/all", "train/grad_norm", "dev/wer", "dev/cer"} <= set(events.Tags()["scalars"])


def test_wandb_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    trained_by(work_in(tmp_path, spec=spec_of(**SHORT), cluster={"track": ["wandb"]}))
    (run,) = (tmp_path / "train/wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20  # its service process writes when it gets to it
    while b"train/loss" not in run.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


UNREACHABLE = """
from pathlib import Path
from caspi import tracking
tracking.CLOSE_SECONDS = 3.0
trackers = tracking.Tracking(["wandb"], Path("."), "toy", {})
trackers.log({"train": {"loss": 1.0}}, 1)
trackers.close()
print("went on")
"""


def test_wandb_unreachable_does_not_stop(tmp_path: Path) -> None:
    """In a process of its own: wandb remembers how it was first started."""
    environment = {**os.environ, "WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40}
    environment["WANDB_BASE_URL"] = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", UNREACHABLE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "went on" in run.stdout and "warning: wandb is off for the rest of this run" in run.stderr
    assert time.monotonic() - began < 40
