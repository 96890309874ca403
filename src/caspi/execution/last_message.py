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
from caspi.records.heartbeat import LastMessage, parse_last_message

TERMINATION_LOG = Path("/dev/termination-log")


@contextmanager
def last_message() -> Iterator[None]:
    """Leave the line and the exit code of an error that ends this block in the pod's status, and raise it on.

    A full disk is a StageFailed: its message names the place.
    """
    try:
        yield
    except CaspiError as error:
        leave(LastMessage(error.exit_code, str(error)))
        raise
    except Exception as error:
        if isinstance(error, OSError) and no_space_left(error):
            full = StageFailed(
                f"no space left on {error.filename or 'a disk'}; free some space or enlarge the claim, then run again"
            )
            leave(LastMessage(full.exit_code, str(full)))
            raise full from None
        line = f"a fault in Caspi, please report it: {traceback.format_exception_only(error)[-1].strip()}"
        leave(LastMessage(1, line))
        raise


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
        code = error.exit_code if isinstance(error, CaspiError) else 1
        print(error, file=sys.stderr)
        write_text(path, LastMessage(code, f"fetch: {error}").text())


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
