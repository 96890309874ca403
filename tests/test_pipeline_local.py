"""The pipeline by kfp.local: it trains only when it may, survives a kill, and leaves the records of `caspi run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipeline_work import HOUSE, Work, make_work

ALL = ["export", "audit", "gate", "train", "benchmark", "compare", "report", "free"]
REFUSED = ["export", "audit", "gate", "free"]
pytestmark = [pytest.mark.timeout(900)]  # a minute where nothing else runs


def running(work: Work) -> list[int]:
    """Processes of the round: they have its folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(work.runs) in text:
            found.append(int(path.parent.name))
    return found


def wait_until(what: str, seconds: float, test: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


@contextmanager
def started(work: Work) -> Iterator[subprocess.Popen[bytes]]:
    """The committed pipeline, in a process that can be killed."""
    log = (work.runs.parent / "first.log").open("wb")
    process = subprocess.Popen(work.command(None), cwd=HOUSE, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.slow
def test_killed_in_training_and_run_again_it_is_the_round_of_caspi_run(tmp_path: Path) -> None:
    work = make_work(tmp_path, phases=[{"name": "A", "epochs": 6, "rates": {"all": 1e-4}}])
    with started(work) as process:
        wait_until("a checkpoint", 200, lambda: (work.path / "train" / "latest").exists() or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "first.log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until("nothing left running", 10, lambda: not running(work))
    assert not (work.path / "train" / "record.json").exists(), "it was to be killed in the middle"

    again = work.run(None)
    assert (again.code, again.tasks) == (0, ALL), again.text
    assert "small has no parent: there is nothing to compare with" in again.text
    assert "the run ended as SUCCEEDED" in again.text

    plain = replace(work, runs=tmp_path / "plain")
    command = [sys.executable, "-m", "caspi", "run", work.round, "-c", work.cluster, "--runs", plain.runs]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    mine, theirs = work.records(), plain.records()
    assert {stage: record.digest for stage, record in mine.items()} == {
        stage: record.digest for stage, record in theirs.items()
    }
    assert set(mine) == {"export", "audit", "train", "benchmark", "report"}

    before = work.written()
    once_more = work.run(None)
    assert (once_more.code, once_more.tasks) == (0, ALL), once_more.text
    assert work.written() == before, "a finished round is not run again"


def test_a_caution_trains_only_with_an_approval_of_that_audit(tmp_path: Path) -> None:
    work = make_work(tmp_path, silent=6)
    unsigned = work.run()
    assert (unsigned.code, unsigned.tasks) == (0, REFUSED), unsigned.text
    assert "the audit says CAUTION" in unsigned.text
    assert set(work.records()) == {"export", "audit", "report"}, "the report says why"

    audit = work.records()["audit"].digest
    signed = {"approve_by": "Dana's boss", "approve_reason": "it's known", "approve_audit": "0" * 12}
    other = work.run(**signed)
    assert (other.code, other.tasks) == (0, REFUSED), other.text
    assert "is of another audit" in other.text
    assert not (work.path / "train").exists()

    approved = work.run(**signed | {"approve_audit": audit[:12]})
    assert (approved.code, approved.tasks) == (0, ALL), approved.text
    assert set(work.records()) == {"export", "audit", "train", "benchmark", "report"}


def test_a_stop_never_trains_whoever_signs_it(tmp_path: Path) -> None:
    work = make_work(tmp_path, silent=30)
    signed = work.run(approve_by="Dana", approve_reason="hurry", approve_audit="0" * 12)
    assert (signed.code, signed.tasks) == (0, REFUSED), signed.text
    assert "the audit says STOP" in signed.text
    assert not (work.path / "train").exists()


def test_a_step_that_fails_fails_the_run_and_the_last_step_runs(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    (tmp_path / "data" / "crowd" / "a.parquet").write_bytes(b"no parquet")
    done = work.run()
    assert done.code == 1
    assert done.tasks == ["export", "free"], done.text
    assert "Traceback" not in done.text, "one line says it"
    assert "the run ended as FAILED" in done.text
