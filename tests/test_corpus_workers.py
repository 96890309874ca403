"""Work over processes: every result once, errors as they are, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caspi.corpus.workers import cores, spread
from caspi.errors import UserError


def square(number: int) -> int:
    if number == 13:
        raise UserError("13 brings bad luck", where="here")
    return number * number


def test_every_result_once_and_the_error_as_it_was() -> None:
    assert sorted(spread(square, range(10), 2)) == [n * n for n in range(10)]
    with pytest.raises(UserError, match="here: 13 brings bad luck"):
        list(spread(square, range(20), 2))


def test_in_one_process_tasks_are_taken_as_needed() -> None:
    taken = []

    def supply() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    assert next(spread(square, supply(), 1)) == 0
    assert taken == [0]


def test_cores() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


SLEEPERS = """
import sys, time
from caspi.corpus.workers import spread
from tests.test_corpus_workers import sleeper
if __name__ == "__main__":
    for pid in spread(sleeper, [0.0, 0.0, 600.0, 600.0], 2):
        print(pid, flush=True)
"""


def sleeper(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _state(pid) in ("", "Z"), "a killed parent leaves no worker"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
