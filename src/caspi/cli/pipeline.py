"""`--to kfp` of submit, status and cancel: a round as a run on Kubeflow Pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from caspi.cli.options import Target, as_json_text, round_name
from caspi.errors import UserError


def submit_run(
    target: Target, cluster: Path, approval: Any, pipeline: Path | None, dry_run: bool, wait: bool, as_json: bool
) -> None:
    """`caspi submit --to kfp`."""
    from caspi.pipeline import submission
    from caspi.pipeline.given import fitting, parameters, read_package
    from caspi.pipeline.package import pipeline_file

    spec, given = target.spec, parameters(target.spec, target.cluster, approval, str(cluster))
    settings = target.cluster.kubernetes.pipelines
    package = read_package(pipeline or pipeline_file())
    wanted = submission.Wanted(spec.round, spec.digest, settings.experiment, fitting(given, package))
    if dry_run:
        told = {"run": wanted.name, "pipeline": package.version, "experiment": wanted.experiment}
        typer.echo(_text({**told, "parameters": wanted.parameters}, as_json), nl=False)
        return

    from caspi.pipeline.runs import connect

    backend = connect(settings)
    outcome, run = submission.submit(backend, wanted, package, _say)
    if as_json:
        told = {"round": spec.round, "spec": spec.digest, "run": run.id, "name": run.name, "outcome": outcome}
        typer.echo(as_json_text({**told, "pipeline": package.version, "url": backend.url(run.id)}), nl=False)
    else:
        typer.echo(f"{spec.round}  sha256:{spec.digest[:12]}  {outcome}  {backend.url(run.id)}")
        typer.echo(f"next: caspi status {spec.round} --to kfp --cluster {cluster}")
    if wait:
        submission.wait(backend, run.id, _say)


def run_status(name: str | None, cluster: Path | None, namespace: str | None, as_json: bool) -> None:
    """`caspi status --to kfp`."""
    from caspi.pipeline.state import describe, headline, render
    from caspi.pipeline.submission import newest

    backend = _backend(cluster, namespace)
    if name:
        found = [newest(backend, round_name(name))]
    else:
        last = {run.round: run for run in backend.runs()}.values()
        found = [run if run.active else backend.run(run.id) for run in last]
    if not found:
        raise UserError("no runs of rounds here; `caspi submit --to kfp` makes one", where=backend.endpoint)
    if as_json:
        typer.echo(as_json_text([describe(run, backend.url(run.id)) for run in found]), nl=False)
        return
    for run in found:
        url = backend.url(run.id)
        typer.echo(render(run, url) if name else f"{headline(run, url)}\n", nl=False)


def cancel_run(name: str, wait: bool, cluster: Path | None, namespace: str | None, context: str | None) -> None:
    """`caspi cancel --to kfp`."""
    from caspi.pipeline.submission import cancel

    backend = _backend(cluster, namespace)
    if not cancel(backend, name, _kubernetes(cluster), context, wait, _say):
        typer.echo(f"{name} does not run at {backend.endpoint}: nothing to cancel")
    else:
        typer.echo(f"{name} is cancelled" + ("" if wait else "; its run ends as soon as the backend sees it"))


def _backend(cluster: Path | None, namespace: str | None) -> Any:
    from caspi.pipeline.runs import connect
    from caspi.spec.cluster import Pipelines

    kubernetes = _kubernetes(cluster)
    settings = kubernetes.pipelines if kubernetes else Pipelines()
    return connect(settings.model_copy(update={"namespace": namespace}) if namespace else settings)


def _kubernetes(cluster: Path | None) -> Any:
    from caspi.spec import load_cluster

    return load_cluster(cluster).kubernetes if cluster else None


def _text(told: dict[str, Any], as_json: bool) -> str:
    from caspi.fleet.values import values_text

    return as_json_text(told) if as_json else values_text(told)


def _say(line: str) -> None:
    typer.echo(line, err=True)
