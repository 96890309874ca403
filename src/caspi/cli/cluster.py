"""The commands of a round on Kubernetes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from caspi.cli.options import (
    RUNS,
    ApproveAudit,
    ApproveBy,
    ApproveReason,
    ContextOption,
    JsonOption,
    NamespaceOption,
    RunsOption,
    WhereOption,
    app,
    as_json_text,
    find_target,
    round_name,
    signed,
    values_file,
)
from caspi.errors import UserError

ToOption = Annotated[
    Literal["helm", "kfp"],
    typer.Option("--to", help="Where the round is: a PyTorchJob by Helm, or a run on Kubeflow Pipelines."),
]
ToHelmOption = Annotated[Literal["helm"], typer.Option("--to", help="Where the round is: a PyTorchJob by Helm.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name of a round, or its file.")]


@app.command()
def submit(
    round: Annotated[str, typer.Argument(metavar="ROUND", help="A round file (rounds/x.yaml).")],
    cluster: Annotated[Path, typer.Option("--cluster", "-c", help="Where it runs, with a kubernetes section.")],
    to: ToOption = "helm",
    values: Annotated[
        list[Path] | None, typer.Option("--values", "-f", help="More values of charts/caspi-train; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the values for Helm; change nothing.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until training has ended, with the exit code it ends with.")
    ] = False,
    approve_by: ApproveBy = None,
    approve_reason: ApproveReason = None,
    approve_audit: ApproveAudit = None,
    pipeline: Annotated[
        Path | None,
        typer.Option("--pipeline", metavar="FILE", help="kfp: a compiled pipeline. [default: the one of this version]"),
    ] = None,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Bring a round to Kubernetes; the same command again finds it there, or goes on where it failed.

    By Helm it is prepared and trained. On Kubeflow Pipelines it is also measured, compared and reported.

    Example: caspi submit rounds/hebrew-r2.yaml --cluster clusters/8xa100-40gb.yaml
    Example: caspi submit rounds/hebrew-r2.yaml --cluster clusters/8xa100-40gb.yaml --to kfp
    """
    from caspi.charts.train import Approval
    from caspi.fleet.values import train_values, values_text, with_files
    from caspi.plan import make_plan

    target = find_target(round, cluster, runs)
    make_plan(target.spec, target.cluster, target.existing)  # refuses what does not fit before anything is started
    signature = signed(approve_by, approve_reason, approve_audit)
    approval = Approval(**signature) if signature else None
    if to == "kfp":
        if values:
            raise UserError("--values goes with --to helm: the pipeline has no word for it")
        from caspi.cli.pipeline import submit_run

        submit_run(target, cluster, approval, pipeline, dry_run, wait, as_json)
        return
    if pipeline:
        raise UserError("--pipeline goes with --to kfp")
    wanted = train_values(target.spec, target.cluster, approval, str(cluster))
    wanted = with_files(wanted, [(str(path), values_file(path)) for path in values or []])
    if dry_run:
        typer.echo(as_json_text(wanted) if as_json else values_text(wanted), nl=False)
        return

    from caspi.fleet.api import connect
    from caspi.fleet.chart import chart_folder
    from caspi.fleet.helm import find_helm
    from caspi.fleet.submit import submit as bring

    kubernetes = target.cluster.kubernetes
    helm = find_helm(kubernetes.namespace, kubernetes.context)
    api = connect(kubernetes.context, kubernetes.namespace)
    name = target.spec.round
    outcome = bring(api, helm, chart_folder(), wanted, lambda line: typer.echo(line, err=True))
    if as_json:
        told = {"round": name, "spec": target.spec.digest, "namespace": api.namespace, "outcome": outcome}
        typer.echo(as_json_text(told), nl=False)
    else:
        typer.echo(f"{name}  sha256:{target.spec.digest[:12]}  {outcome}  {api.where}")
        typer.echo(f"next: caspi status {name} --to helm --cluster {cluster}")
    if wait:
        _wait_until_ended(api, name)


@app.command()
def logs(
    name: NameArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job has ended.")] = False,
    worker: Annotated[int | None, typer.Option("--worker", min=0, help="Only this one.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="10m", help="Only the last so many s, m or h.")
    ] = None,
    to: ToHelmOption = "helm",
    cluster: WhereOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
) -> None:
    """Print the logs of all pods of a round as one, also of containers that were restarted.

    Example: caspi logs hebrew-r2 --follow --cluster clusters/8xa100-40gb.yaml
    """
    from caspi.fleet.diagnose import Diagnosis, claim_name, directory, render
    from caspi.fleet.logs import follow_logs, read_logs

    seconds = _seconds(since) if since else None
    api = _api(cluster, namespace, context)
    look = _found(api, round_name(name))
    lines = follow_logs(api, look.name, worker, seconds) if follow else read_logs(api, look, worker, seconds)
    shown = 0
    try:
        for line in lines:
            if isinstance(line, Diagnosis):
                typer.echo(render(line), nl=False, err=True)
            else:
                shown += 1
                typer.echo(f"{line.label} | {line.text}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not shown:
        typer.echo(
            f"no pod of {look.name} has a log now; copies lie in {directory(look)}/train/logs on the claim"
            f"{claim_name(look)}",
            err=True,
        )


@app.command()
def cancel(
    name: NameArgument,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until the last pod is gone: workers save a checkpoint first.")
    ] = True,
    to: ToOption = "helm",
    cluster: WhereOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
) -> None:
    """Take a round off Kubernetes, with all that it made there. What is on the claim stays.

    Example: caspi cancel hebrew-r2 --cluster clusters/8xa100-40gb.yaml
    Example: caspi cancel hebrew-r2 --to kfp --cluster clusters/8xa100-40gb.yaml
    """
    if to == "kfp":
        from caspi.cli.pipeline import cancel_run

        cancel_run(round_name(name), wait, cluster, namespace, context)
        return
    from caspi.fleet.cancel import cancel as remove
    from caspi.fleet.helm import find_helm

    api = _api(cluster, namespace, context)
    called = round_name(name)
    there = remove(api, find_helm(api.namespace, api.context), called, wait, lambda line: typer.echo(line, err=True))
    if not there:
        typer.echo(f"{called} is not in {api.where}: nothing to cancel")
    else:
        typer.echo(f"{called} is cancelled" + ("" if wait else "; its pods end as soon as they have saved"))


def cluster_status(
    name: str | None, cluster: Path | None, namespace: str | None, context: str | None, as_json: bool
) -> None:
    """`caspi status --to helm`."""
    from caspi.fleet.diagnose import diagnose, headline, render
    from caspi.fleet.snapshot import read_snapshots

    api = _api(cluster, namespace, context)
    looks = [_found(api, round_name(name))] if name else read_snapshots(api)
    if not looks:
        raise UserError("no rounds here; `caspi submit` brings one", where=api.where)
    found = [diagnose(look) for look in looks]
    if as_json:
        told = [{**one.to_json(), "snapshot": look.to_json()} for one, look in zip(found, looks, strict=True)]
        typer.echo(as_json_text(told), nl=False)
    elif name:
        typer.echo(render(found[0]), nl=False)
    else:
        for one in found:
            why = f"   {one.blocking.who}: {one.blocking.id}" if one.blocking else ""
            typer.echo(headline(one) + why)


def _wait_until_ended(api: Any, name: str) -> None:
    """Tell how it goes until it has ended; raise what it ended with."""
    from caspi.fleet.diagnose import diagnose, render
    from caspi.fleet.submit import verdict

    said = ""
    while True:
        diagnosis = diagnose(_found(api, name))
        text = render(diagnosis)
        if text != said:
            typer.echo(text, nl=False, err=True)
            said = text
        if diagnosis.ended:
            if problem := verdict(diagnosis):
                raise problem
            return
        time.sleep(5)


def _api(cluster: Path | None, namespace: str | None, context: str | None) -> Any:
    from caspi.fleet.api import connect
    from caspi.spec import load_cluster

    if cluster:
        kubernetes = load_cluster(cluster).kubernetes
        if kubernetes is None:
            raise UserError("kubernetes: missing; it says which context and namespace", where=str(cluster))
        context, namespace = context or kubernetes.context, namespace or kubernetes.namespace
    return connect(context, namespace)


def _found(api: Any, name: str) -> Any:
    from caspi.fleet.snapshot import read_snapshots

    looks = read_snapshots(api, name)
    if looks:
        return looks[0]
    there = ", ".join(one.name for one in read_snapshots(api)) or "none"
    raise UserError(f'no round "{name}" there; rounds are: {there}', where=api.where)


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)([smh])", text)
    if not match or match[1] == "0":
        raise UserError(f"--since {text}: write it as 90s, 10m or 2h")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
