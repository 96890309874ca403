"""Run the command line in this process, as a shell would see it."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

from caspi.cli import main


@dataclass(frozen=True, slots=True)
class Finished:
    code: int
    out: str
    err: str


def caspi(*arguments: str) -> Finished:
    """`caspi ARGUMENTS...`: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["caspi", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return Finished(code, out.getvalue(), err.getvalue())
