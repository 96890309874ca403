"""A round on this machine: every stage is its own process, the same command that a cluster runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

from caspi.errors import CaspiError, UserError
from caspi.orphans import die_with_parent
from caspi.records.record import STAGES, Record, StageName
from caspi.records.round_dir import RoundDir


class StageExit(CaspiError):
    """A stage's process ended with a code of its own; it has already said why, unless it was killed."""

    def __init__(self, stage: StageName, code: int) -> None:
        super().__init__(
            f"stage {stage} was killed (exit code {code}); run the same command again" if code > 128 else ""
        )
        self.exit_code = code


def stages_of(round_dir: RoundDir) -> list[StageName]:
    """The stages of this round in order: a round without a parent has nothing to compare with."""
    return [stage for stage in STAGES if stage != "compare" or round_dir.spec.parent]


def run_round(
    round_dir: RoundDir, on_stage: Callable[[StageName, int, int], None], on_record: Callable[[StageName, Record], None]
) -> None:
    """Run every stage in order. A stage that is done on the same inputs ends at once by itself.

    Raises StageExit with the exit code of the first stage that fails; the report is still made.
    """
    stages = stages_of(round_dir)
    try:
        for number, stage in enumerate(stages, start=1):
            on_stage(stage, number, len(stages))
            run_stage(round_dir, stage)
            record = round_dir.record(stage)
            assert record, "a stage that succeeds leaves a record"
            on_record(stage, record)
    except StageExit as error:
        if error.exit_code > 0 and stage != "report":
            run_stage(round_dir, "report")
        raise


def run_stage(round_dir: RoundDir, stage: StageName) -> None:
    """Run one stage in a process and wait for it; train starts more of them where the cluster file says so."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # more threads for each process make all of them slower
    process = subprocess.Popen(
        stage_command(round_dir, stage),
        env=environment,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )

    def forward(number: int, _frame: FrameType | None) -> None:
        os.killpg(process.pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    if code:
        raise StageExit(stage, code if code > 0 else 128 - code)


def stage_command(round_dir: RoundDir, stage: StageName) -> list[str]:
    """The argv of a stage: what a local run, a pod and a pipeline step all call."""
    nodes = round_dir.cluster.nodes
    if stage == "train" and nodes > 1:
        raise UserError(
            f"nodes = {nodes}: `caspi run` trains on one machine; give a cluster file with nodes: 1, or start "
            "`caspi stage train` on each node (docs/gpu-box.md)",
            where=str(round_dir.path / "cluster.yaml"),
        )
    return [sys.executable, "-m", "caspi", "stage", stage, "--round-dir", str(round_dir.path)]
