"""What commands share: the app, options, and what a ROUND argument names."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from caspi.errors import UserError

app = typer.Typer(
    name="caspi",
    help="Fine-tune speech-recognition models in reproducible rounds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

RoundArgument = Annotated[
    str,
    typer.Argument(metavar="ROUND", help="A round file (rounds/x.yaml), a round directory, or the name of a round."),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where round directories are.")]
ClusterOption = Annotated[
    Path | None,
    typer.Option("--cluster", "-c", help="Where it runs (clusters/x.yaml). Without it: this machine's CPU."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output under stable names.")]
WhereOption = Annotated[
    Path | None,
    typer.Option("--cluster", "-c", help="The cluster file: its kubernetes section says which context and namespace."),
]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", "-n", help="[default: the context's]")]
ContextOption = Annotated[str | None, typer.Option("--context", help="Of the kubeconfig. [default: the current one]")]
ApproveBy = Annotated[str | None, typer.Option("--approve-by", help="Sign an audit that says CAUTION: who.")]
ApproveReason = Annotated[str | None, typer.Option("--approve-reason", help="Why training may go on.")]
ApproveAudit = Annotated[
    str | None,
    typer.Option("--approve-audit", help="Which audit: 12 digits or more of its digest, as status names it."),
]
RUNS = Path("runs")


def end(message: str, code: int) -> NoReturn:
    """End the program: the message on stderr, if there is one."""
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


class Target:
    """What a ROUND argument names: a file with its cluster, or a directory that exists."""

    def __init__(self, file: Path | None, spec: Any, cluster: Any, runs: Path, existing: Any) -> None:
        self.file, self.spec, self.cluster, self.runs, self.existing = file, spec, cluster, runs, existing

    @property
    def data_root(self) -> Path:
        if self.file is None:
            return self.existing.data_root  # type: ignore[no-any-return]
        return (self.file.parent / (self.cluster.data_root or "")).resolve()

    def made(self) -> Any:
        """The directory of a round that ran, at least in part."""
        if self.existing is None:
            raise UserError(f"has not run yet; run it first: caspi run {self.file}", where=str(self.file))
        return self.existing

    def directory(self) -> Any:
        from caspi.records.round_dir import create

        return create(self.runs, self.spec, self.cluster, self.file.parent) if self.file else self.existing


def find_target(argument: str, cluster_file: Path | None, runs: Path) -> Target:
    from caspi.records.round_dir import find_round, open_round, round_path
    from caspi.spec import ClusterSpec, load_cluster, load_round

    path = Path(argument)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        spec = load_round(path)
        cluster = load_cluster(cluster_file) if cluster_file else ClusterSpec()
        there = round_path(runs, spec)
        return Target(path, spec, cluster, runs, open_round(there) if (there / "round.yaml").exists() else None)
    if path.is_dir():
        existing = open_round(path)
    elif "/" in argument:
        raise UserError("no such file or round directory", where=argument)
    else:
        existing = find_round(runs, argument)
    cluster = load_cluster(cluster_file) if cluster_file else existing.cluster
    return Target(None, existing.spec, cluster, existing.path.parent, existing)


def round_name(argument: str) -> str:
    """Of a round's file, or the name itself."""
    from caspi.spec import load_round

    return load_round(Path(argument)).round if argument.endswith((".yaml", ".yml")) else argument


def signed(by: str | None, reason: str | None, audit: str | None) -> dict[str, str] | None:
    """What the three options of an approval say; UserError when some are missing."""
    given = {"by": by or "", "reason": reason or "", "audit": audit or ""}
    missing = [f"--approve-{name}" for name, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if missing:
        raise UserError(f"{', '.join(missing)}: missing; an approval says who signs which audit, and why")
    if not re.fullmatch(r"[0-9a-f]{12,64}", given["audit"]):
        raise UserError(
            f"--approve-audit {audit}: no digest of an audit; give at least 12 digits of the one that the gate's "
            "refusal and `caspi status` name"
        )
    return given


def as_json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def values_file(path: Path) -> dict[str, Any]:
    """More values of a chart; UserError when the file has none."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}", where=str(path)) from None
    if not isinstance(content, dict):
        raise UserError("expected a mapping of values", where=str(path))
    return json.loads(json.dumps(content))  # type: ignore[no-any-return]
