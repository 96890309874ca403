"""Where Kubernetes reads what a container said last."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caspi.errors import CaspiError, StageFailed
from caspi.files import no_space_left, write_text
from caspi.launched import Ended
from caspi.records.heartbeat import LastMessage, parse_last_message

TERMINATION_LOG = Path("/dev/termination-log")


@contextmanager
def last_message() -> Iterator[None]:
    """Leave the line and the exit code of an error that ends this block in the pod's status, and raise it on.

    A full disk is a StageFailed: its message names the place.
    """
    try:
        yield
    except Exception as error:
        ended = ended_by(error)
        leave(LastMessage(ended.code, ended.line))
        if ended.code == StageFailed.exit_code and not isinstance(error, CaspiError):
            raise StageFailed(ended.line) from None
        raise


def ended_by(error: Exception, place: object = "a disk", again: str = "run again") -> Ended:
    """The exit code and the line of an error that ends a pod's work. `place` is what is full where the error names no
    file, `again` what to do when there is room."""
    if isinstance(error, CaspiError):
        return Ended(error.exit_code, str(error))
    if isinstance(error, OSError) and no_space_left(error):
        where = error.filename or place
        return Ended(
            StageFailed.exit_code, f"no space left on {where}; free some space or enlarge the claim, then {again}"
        )
    return Ended(1, f"a fault in Caspi, please report it: {traceback.format_exception_only(error)[-1].strip()}")


@contextmanager
def handed_on(path: Path) -> Iterator[None]:
    """Leave an error that ends this block in a file for the container that comes next, and go on as if all were well.

    The training operator knows no exit code of an init container that fails: it would start pods anew for ever.
    """
    path.unlink(missing_ok=True)
    try:
        with last_message():
            yield
    except Exception as error:
        ended = ended_by(error)
        print(ended.line, file=sys.stderr)
        write_text(path, LastMessage(ended.code, f"fetch: {ended.line}").text())


def handed(path: Path) -> LastMessage | None:
    """What the container before left there."""
    return parse_last_message(path.read_text(encoding="utf-8")) if path.exists() else None


def leave(message: LastMessage) -> None:
    """Where CASPI_TERMINATION_LOG says, or where Kubernetes looks for it. Outside of a pod: nowhere."""
    path = Path(os.environ.get("CASPI_TERMINATION_LOG") or TERMINATION_LOG)
    if path == TERMINATION_LOG and not os.access(path, os.W_OK):
        return  # no pod
    try:
        path.write_text(message.text(), encoding="utf-8")
    except OSError as error:
        print(f"warning: no last message in {path} ({error})", file=sys.stderr)
