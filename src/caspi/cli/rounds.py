"""The commands of a round on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from caspi.cli.options import (
    RUNS,
    ClusterOption,
    ContextOption,
    JsonOption,
    NamespaceOption,
    RoundArgument,
    RunsOption,
    WhereOption,
    app,
    as_json_text,
    end,
    find_target,
)
from caspi.errors import UserError
from caspi.launched import die_with_agent


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the round, for example hebrew-r1.")],
    data: Annotated[
        str, typer.Option("--data", help="Training data: a folder, or a Hugging Face repository@revision.")
    ] = "data/train",
    test: Annotated[str, typer.Option("--test", help="Test data, likewise.")] = "data/test",
    language: Annotated[
        str | None, typer.Option("--language", help="In English, with a capital. [default: Hebrew]")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where rounds/ and clusters/ are.")] = Path(),
    from_sft: Annotated[
        str | None,
        typer.Option(
            "--from-sft",
            metavar="COMMAND",
            help="Convert the command that starts qwen3_asr_sft.py, and say what was wrong in it. It is not run.",
        ),
    ] = None,
) -> None:
    """Write a first round file and a cluster file to start from.

    Example: caspi init hebrew-r1 --data data/crowd --test data/eval
    """
    from caspi.starter import write_from_sft, write_starter

    if from_sft is not None and (data, test) != ("data/train", "data/test"):
        raise UserError("--data and --test do not go with --from-sft: the command names the files")
    if from_sft is None:
        files, cluster = write_starter(folder, name, data, test, language or "Hebrew"), ""
    else:
        converted = write_from_sft(folder, name, from_sft, language, Path())
        for note in converted.notes:
            typer.echo(note)
        files, cluster = converted.files, f" --cluster {folder / 'clusters' / name}.yaml"
    for path in files:
        typer.echo(f"wrote {path}")
    typer.echo(f"next: caspi doctor {folder / 'rounds' / name}.yaml{cluster}")


@app.command()
def plan(
    round: RoundArgument, cluster: ClusterOption = None, runs: RunsOption = RUNS, as_json: JsonOption = False
) -> None:
    """Print what follows from a round and a cluster: steps, batches, parameters, memory, time, cost.

    Example: caspi plan rounds/hebrew-r2.yaml --cluster clusters/2xa100-40gb.yaml
    """
    from caspi.plan import make_plan, render

    target = find_target(round, cluster, runs)
    made = make_plan(target.spec, target.cluster, target.existing)
    typer.echo(as_json_text(made.model_dump(mode="json")) if as_json else render(made), nl=False)


@app.command()
def doctor(
    round: RoundArgument, cluster: ClusterOption = None, runs: RunsOption = RUNS, as_json: JsonOption = False
) -> None:
    """Check everything that costs money when it is found later. Exit code 2 when something blocks.

    Example: caspi doctor rounds/hebrew-r2.yaml --cluster clusters/8xa100-40gb.yaml
    """
    from caspi.doctor import examine, render

    target = find_target(round, cluster, runs)
    checks = examine(target.spec, target.cluster, target.file, target.data_root)
    typer.echo(as_json_text([check.model_dump() for check in checks]) if as_json else render(checks), nl=False)
    if any(check.state == "blocked" for check in checks):
        raise typer.Exit(UserError.exit_code)


@app.command()
def run(
    round: RoundArgument, cluster: ClusterOption = None, runs: RunsOption = RUNS, as_json: JsonOption = False
) -> None:
    """Run a whole round on this machine; whatever is done already is not done again.

    Example: caspi run rounds/demo-r1.yaml
    """
    from caspi.execution.local import run_round
    from caspi.plan import make_plan
    from caspi.status import describe, summary

    target = find_target(round, cluster, runs)
    make_plan(target.spec, target.cluster, target.existing)  # refuses what does not fit before anything is written
    round_dir = target.directory()

    def on_stage(stage: str, number: int, total: int) -> None:
        typer.echo(f"[{number}/{total}] {stage}", err=True)

    def on_record(stage: str, record: Any) -> None:
        typer.echo(f"      {summary(record)}", err=True)

    typer.echo(f"{round_dir.spec.round}  sha256:{round_dir.spec.digest[:12]}  in {round_dir.path}", err=True)
    run_round(round_dir, on_stage, on_record)
    if as_json:
        typer.echo(as_json_text(describe(round_dir)), nl=False)
    else:
        typer.echo(f"report: {(round_dir.folder('report') / 'index.html').resolve()}")


@app.command()
def stage(
    name: Annotated[str, typer.Argument(metavar="STAGE", help="export, audit, train, benchmark, compare or report.")],
    round_dir: Annotated[Path, typer.Option("--round-dir", help="A round directory, as `caspi run` makes it.")],
    nnodes: Annotated[
        str | None,
        typer.Option(envvar="PET_NNODES", metavar="N or MIN:MAX", help="train: nodes. [default: the cluster file]"),
    ] = None,
    nproc_per_node: Annotated[
        str | None,
        typer.Option(envvar="PET_NPROC_PER_NODE", metavar="N", help="train: processes. [default: the cluster file]"),
    ] = None,
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option(envvar="PET_RDZV_ENDPOINT", metavar="HOST:PORT", help="train: where several nodes meet."),
    ] = None,
    rdzv_id: Annotated[
        str | None,
        typer.Option(envvar="PET_RDZV_ID", help="train: the name that they meet under. [default: of the directory]"),
    ] = None,
    rdzv_conf: Annotated[
        str | None, typer.Option(envvar="PET_RDZV_CONF", metavar="K=V,...", help="train: join_timeout=600, is_host=1")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(envvar="PET_MAX_RESTARTS", min=0, help="train: how often a crash or a hang is begun again.")
    ] = 3,
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="benchmark: through a server that runs already.")
    ] = None,
) -> None:
    """Run one stage of a round: what pods and pipeline steps call. Train starts and watches one process a GPU.

    Example: caspi stage train --round-dir runs/demo-r1-6493ec98
    """
    from caspi.execution.agent import run_agent
    from caspi.execution.nodes import meeting_for, training_command
    from caspi.execution.surroundings import OnDisk
    from caspi.records.round_dir import open_round
    from caspi.stages import stage_called
    from caspi.stages.stage import perform

    die_with_agent()
    light = stage_called(name) if name != "train" else None  # training imports torch, which its agent does not need
    opened = open_round(round_dir)
    if name == "train":
        meeting = meeting_for(
            opened.cluster, nnodes, nproc_per_node, rdzv_endpoint, rdzv_id or opened.path.name, rdzv_conf
        )
        if meeting:
            ended = run_agent(training_command(round_dir), meeting, max_restarts, around=OnDisk(opened))
            end(ended.line, ended.code)
    if server is not None:
        from caspi.stages.served import benchmark_served

        if name != "benchmark":
            raise UserError(f"--server is for benchmark, not for {name}")
        typer.echo(benchmark_served(opened, server))
        return
    perform(light or stage_called(name), opened)


@app.command()
def benchmark(
    round: RoundArgument,
    server: Annotated[str, typer.Option("--server", metavar="URL", help="Where the round's model is served.")],
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Requests at a time.")] = 16,
    runs: RunsOption = RUNS,
) -> None:
    """Benchmark a round through a server that runs already; then compare with the parent, and make the report.

    The first time its answers become the record. A record that is there stays, and the answers are held against it:
    exit code 4 when they are worse.

    Example: caspi benchmark hebrew-r2 --server http://127.0.0.1:8000
    """
    from caspi.stages import stage_called
    from caspi.stages.served import benchmark_served
    from caspi.stages.stage import perform
    from caspi.status import summary

    round_dir = find_target(round, None, runs).made()
    typer.echo(f"benchmark  {benchmark_served(round_dir, server, concurrency)}")
    if round_dir.spec.parent:
        try:
            compared = summary(perform(stage_called("compare"), round_dir)[0])
        except UserError as error:  # no fault of this server's: the parent isn't here, or not measured
            compared = f"not done: {error}"
        typer.echo(f"compare    {compared}")
    typer.echo(f"report     {summary(perform(stage_called('report'), round_dir)[0])}")


@app.command()
def approve(
    round: RoundArgument,
    by: Annotated[str, typer.Option("--by", help="Who signs.")],
    reason: Annotated[str, typer.Option("--reason", help="Why training may go on all the same.")],
    runs: RunsOption = RUNS,
) -> None:
    """Sign an audit that says CAUTION, so that training may go on.

    Example: caspi approve hebrew-r2 --by "Dana Levi" --reason "noisy domain is 2% of the data"
    """
    from caspi.audit.gate import approve as sign

    typer.echo(f"wrote {sign(find_target(round, None, runs).directory(), by, reason)}")


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model or checkpoint folder.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve a model with the OpenAI transcription API (/v1/audio/transcriptions, /v1/models, /health, /metrics).

    Example: caspi serve runs/demo-r1-6493ec98/model --port 8000
    """
    from caspi.serving.server import serve as listen

    listen(model, host, port)


@app.command()
def report(
    round: RoundArgument,
    runs: RunsOption = RUNS,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Make the HTML report of a round, finished or not, and print where it is.

    Example: caspi report demo-r2 --open
    """
    from caspi.report.render import write_report

    round_dir = find_target(round, None, runs).directory()
    write_report(round_dir)  # not the stage: a round may be asked for its report while it trains
    page = (round_dir.folder("report") / "index.html").resolve()
    typer.echo(str(page))
    if show:
        typer.launch(page.as_uri())


@app.command()
def preview(
    round: RoundArgument,
    count: Annotated[int, typer.Option("--count", help="How many utterances.")] = 8,
    epoch: Annotated[int, typer.Option("--epoch", help="Counted from 0.")] = 0,
    runs: RunsOption = RUNS,
) -> None:
    """Make a page of what training hears: some utterances as they are, and as an epoch's augmentation changes them.

    Example: caspi preview demo-r1 --count 8 --epoch 2
    """
    from caspi.preview import write_preview

    typer.echo(str(write_preview(find_target(round, None, runs).made(), count, epoch).resolve()))


@app.command()
def push(
    round: RoundArgument,
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="The repository; made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Only for those whom its owner lets in.")] = False,
    revision: Annotated[str, typer.Option("--revision", help="The branch.")] = "main",
    runs: RunsOption = RUNS,
) -> None:
    """Publish the model of a round on the Hugging Face hub with a card made from its records. Needs HF_TOKEN.

    Example: caspi push hebrew-r2 --to your-name/hebrew-asr --private
    """
    from caspi.publish import push as publish

    pushed = publish(find_target(round, None, runs).made(), to, private, revision)
    typer.echo(f"{'pushed' if pushed.changed else 'there already, nothing new'}: {pushed.url} at {pushed.commit[:12]}")


@app.command()
def status(
    round: Annotated[str | None, typer.Argument(metavar="[ROUND]", help="One round; without it, all of them.")] = None,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
    to: Annotated[
        Literal["helm", "kfp"] | None,
        typer.Option("--to", help="Those on Kubernetes or on Kubeflow Pipelines, instead of those under --runs."),
    ] = None,
    cluster: WhereOption = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
) -> None:
    """Say how far rounds are, what they found, and what to do next.

    Example: caspi status demo-r2
    Example: caspi status hebrew-r2 --to helm --cluster clusters/8xa100-40gb.yaml
    Example: caspi status hebrew-r2 --to kfp --cluster clusters/8xa100-40gb.yaml
    """
    from caspi.records.round_dir import open_round
    from caspi.status import describe, render

    if to == "helm":
        from caspi.cli.cluster import cluster_status

        cluster_status(round, cluster, namespace, context, as_json)
        return
    if to == "kfp":
        from caspi.cli.pipeline import run_status

        run_status(round, cluster, namespace, as_json)
        return
    if cluster or namespace or context:
        raise UserError("--cluster, --namespace and --context say where on Kubernetes: add --to helm or --to kfp")
    if round is not None:
        found = [find_target(round, None, runs).directory()]
    else:
        found = [open_round(path.parent) for path in sorted(runs.glob("*/round.yaml"))]
        if not found:
            raise UserError(f"no rounds under {runs}/; start one with `caspi run rounds/demo-r1.yaml`")
    described = [describe(round_dir) for round_dir in found]
    typer.echo(as_json_text(described) if as_json else "\n".join(render(one) for one in described), nl=False)
