"""How a step of a pipeline ends: with Caspi's exit codes, no traceback, and never outliving the one who started it.

Kubeflow starts a failed step again whatever it ended with. A training that diverged would diverge again, at the price
of a GPU: so a step leaves its code in the round directory, and started again by the same run it ends at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from caspi.errors import CaspiError, Preempted, Unanswered
from caspi.files import write_json

AGAIN = (CaspiError.exit_code, Preempted.exit_code, Unanswered.exit_code)
"""Codes after which the same step may do better. What ends above 128 was killed, which is nobody's verdict either."""
HOLDS_SECONDS = 900.0
"""How long an earlier end speaks for the next try: longer than Kubeflow waits between two (pipelines/caspi_round.py),
and shorter than it takes somebody to mend the cause and press Retry."""


@contextmanager
def one_line() -> Iterator[None]:
    """A CaspiError becomes its line on stderr and its exit code. Nothing goes on where nobody reads it any more."""
    _die_with_reader()
    try:
        yield
    except CaspiError as error:
        if str(error):
            say(str(error))
        raise SystemExit(error.exit_code) from None


@contextmanager
def remembered(folder: Path, run: str, stage: str) -> Iterator[None]:
    """Leave in `folder` how this step of this run ends for good; if it did moments ago, end the same way at once."""
    path = folder / ".pipeline" / f"{stage}.json"
    if run and (ended := _earlier(path, run)):
        raise ended
    try:
        yield
    except CaspiError as error:
        if run and error.exit_code not in AGAIN and error.exit_code < 128:
            write_json(path, {"run": run, "code": error.exit_code, "at": time.time(), "line": str(error)})
        raise
    path.unlink(missing_ok=True)


def say(line: str) -> None:
    """One line into the step's log."""
    print(line, file=sys.stderr, flush=True)


class Again(CaspiError):
    """This step ended for good a moment ago: the same code."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.exit_code = code


def _earlier(path: Path, run: str) -> Again | None:
    try:
        ended = json.loads(path.read_text(encoding="utf-8"))
        if ended["run"] != run or not 0 <= time.time() - ended["at"] < HOLDS_SECONDS:
            return None
        code, line = int(ended["code"]), str(ended["line"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    shown = f": {line}" if line else ""
    return Again(code, f"ended with code {code} a moment ago, and would again{shown}")


def _die_with_reader() -> None:
    """kfp.local reads a step through a pipe, with a shell between. When the runner is killed nobody reads any more:
    then this process ends too, and the kernel takes the stage that it started along (caspi.orphans)."""
    if not stat.S_ISFIFO(os.fstat(1).st_mode):
        return
    Thread(target=_watch, args=(1, lambda: os.kill(os.getpid(), signal.SIGKILL)), name="reader", daemon=True).start()


def _watch(pipe: int, over: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(pipe, 0)  # errors are reported all the same: the last reader is gone
    if poll.poll():
        over()
