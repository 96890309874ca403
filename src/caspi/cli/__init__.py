"""The command line: few commands, one way to do a thing. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from typing import Annotated

import caspi.first  # noqa: F401  before the rest, which takes a second

# isort: split

import typer

from caspi import __version__
from caspi.cli import rounds  # noqa: F401  registers the commands, in this order

# isort: split

from caspi.cli import cluster, locks, pods  # noqa: F401
from caspi.cli.options import app, end
from caspi.errors import CaspiError, UserError
from caspi.launched import tell_agent


def main() -> None:
    """Run the command line. Errors are one line each, with the exit codes of docs/exit-codes.md."""
    try:
        code = app(standalone_mode=False)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        end("interrupted; run the same command again to go on", 130)
    except typer.TyperException as error:  # a command that can't be parsed: one line instead of a page
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "caspi"
        message = " ".join(error.format_message().rstrip(".").split())
        end(f"{command}: {message[0].lower()}{message[1:]}; see `{command} --help`", UserError.exit_code)
    except CaspiError as error:
        end("" if tell_agent(str(error)) else str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"caspi {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
