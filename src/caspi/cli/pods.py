"""What the pods of a chart run; people rarely need these."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from caspi.cli.options import ApproveAudit, ApproveBy, ApproveReason, app, signed
from caspi.errors import UserError

RoundFile = Annotated[Path, typer.Option("--round", help="The round file.")]
ClusterFile = Annotated[Path, typer.Option("--cluster", help="The cluster file.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where round directories are, for all pods.")]
Digest = Annotated[str, typer.Option("--digest", help="sha256 of the round: any other is refused.")]


@app.command()
def worker(round_dir: Annotated[Path, typer.Option("--round-dir", help="On the volume that all pods share.")]) -> None:
    """Train a round in a pod, together with the others: `caspi stage train`, and what Kubernetes needs to know of it.

    Example: caspi worker --round-dir /rounds/hebrew-r2-6493ec98
    """
    from caspi.execution.worker import run_worker

    run_worker(round_dir, os.environ)


@app.command()
def prepare(
    round: RoundFile,
    cluster: ClusterFile,
    runs: Runs,
    digest: Digest,
    start: Annotated[
        str | None, typer.Option("--start", metavar="NAMESPACE/NAME", help="The PyTorchJob that may run then.")
    ] = None,
    queue: Annotated[str | None, typer.Option("--queue", help="Hand it to this Kueue LocalQueue instead.")] = None,
    approve_by: ApproveBy = None,
    approve_reason: ApproveReason = None,
    approve_audit: ApproveAudit = None,
    assist: Annotated[
        bool, typer.Option("--assist", help="Take parts of the work of another pod that prepares this round.")
    ] = False,
) -> None:
    """Export, audit and gate of a round on a volume that all pods share; then its training job may start.

    Example: caspi prepare --round round.yaml --cluster cluster.yaml --runs /rounds --digest 6493... --start asr/r2
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as `caspi run` sets it for its stages
    from caspi.execution import prepare as preparation
    from caspi.execution.last_message import last_message

    with last_message():
        preparation.end_when_asked()
        if assist:
            _say(f"assistant: {preparation.assist(round, runs, digest)}")
            return
        namespace, slash, name = (start or "").partition("/")
        if start is not None and not (namespace and slash and name):
            raise UserError(f"--start {start}: write NAMESPACE/NAME")
        signature = signed(approve_by, approve_reason, approve_audit)
        approval = preparation.Approval(**signature) if signature else None
        round_dir = preparation.adopt(round, cluster, runs, digest)
        _say(f"{round_dir.spec.round}  sha256:{digest[:12]}  in {round_dir.path}")
        preparation.prepare(round_dir, approval, _say)
        if start:
            from caspi.execution.start import start as start_job

            _say(f"start   {start_job(namespace, name, digest, queue)}")


@app.command()
def fetch(
    round: RoundFile,
    cluster: ClusterFile,
    runs: Runs,
    digest: Digest,
    failure_to: Annotated[
        Path | None,
        typer.Option("--failure-to", help="Leave an error there for `caspi worker`, and end with 0."),
    ] = None,
) -> None:
    """Download what the training of a round starts from, once for all pods; then it needs no network.

    Example: caspi fetch --round round.yaml --cluster cluster.yaml --runs /rounds --digest 6493...
    """
    from caspi.execution.fetch import fetch as fetch_all
    from caspi.execution.last_message import handed_on, last_message
    from caspi.execution.prepare import adopt, end_when_asked

    with handed_on(failure_to) if failure_to else last_message():
        end_when_asked()
        _say(fetch_all(adopt(round, cluster, runs, digest)))


def _say(line: str) -> None:
    typer.echo(line, err=True)
