"""The commands of locks: what a GitOps team merges, checks and applies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caspi.cli.options import RUNS, JsonOption, RunsOption, app, as_json_text, values_file


@app.command()
def lock(
    round: Annotated[Path, typer.Argument(metavar="ROUND", help="A round file (rounds/x.yaml), committed.")],
    cluster: Annotated[Path, typer.Option("--cluster", "-c", help="Where it runs, with a kubernetes section.")],
    chart: Annotated[
        str | None,
        typer.Option("--chart", metavar="OCI", help="The chart in a registry: oci://host/caspi-train@sha256:..."),
    ] = None,
    values: Annotated[
        list[Path] | None,
        typer.Option("--values", "-f", help="More values of charts/caspi-train, committed; may be repeated."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", help="Where the data of the claim lies on this machine.")
    ] = None,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Pin a round by digests in rounds/NAME.lock.yaml, for GitOps: images, data, model, chart, and the commit.

    Example: caspi lock rounds/hebrew-r2.yaml --cluster clusters/8xa100-40gb.yaml
    """
    from caspi.locks.model import plain
    from caspi.locks.write import write_lock

    written = write_lock(round, cluster, chart, data_root, runs, {path: values_file(path) for path in values or []})
    if as_json:
        told = {"path": str(written.path), "outcome": written.outcome, "lock": plain(written.lock)}
        typer.echo(as_json_text(told), nl=False)
        return
    typer.echo(f"{written.path}  {written.outcome}  sha256:{written.lock.digest[:12]}  at {written.lock.git[:12]}")
    if written.outcome == "written":
        typer.echo(f"next: commit {written.path} alone, and merge it; CI runs `caspi verify-locks --base origin/main`")


@app.command("verify-locks")
def verify_locks(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES", help="Locks. [default: rounds/*.lock.yaml]")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="REF", help="What is merged into: locks there never change.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check locks, for CI: none that was merged has changed, and each renders to what it says.

    Example: caspi verify-locks --base origin/main
    """
    from caspi.locks.verify import verify

    found = verify(files or sorted(Path("rounds").glob("*.lock.yaml")), base)
    if as_json:
        typer.echo(as_json_text({"locks": found.checked, "problems": found.problems}), nl=False)
    else:
        for line in found.problems:
            typer.echo(line, err=True)
        if not found.problems:
            typer.echo(f"{len(found.checked)} locks: " + ("all in order" if found.checked else "nothing to check"))
    if found.problems:
        raise typer.Exit(2)


@app.command()
def flux(
    file: Annotated[Path, typer.Argument(metavar="LOCK", help="A lock (rounds/x.lock.yaml) with chart.oci.")],
) -> None:
    """Print the OCIRepository and the HelmRelease of a lock, for Flux.

    Example: caspi flux rounds/hebrew-r2.lock.yaml > flux/hebrew-r2.yaml
    """
    from caspi.locks.flux import manifests
    from caspi.locks.model import read_lock

    typer.echo(manifests(read_lock(file), str(file)), nl=False)
