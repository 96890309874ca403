"""The Kubeflow pipeline of a round: export, audit, gate, and if that passes train, benchmark, compare, report.

A step's body only calls caspi.pipeline.steps, which is in its image: nothing is installed when a step starts. The graph
is flat, with one condition, on one of two words; the train step asks the gate again by itself. `make pipelines` writes
caspi-round.yaml, which is committed.
"""

# No `from __future__ import annotations` here: kfp reads the types of a component from its annotations themselves.
import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kfp import compiler, dsl, kubernetes
from kfp.dsl import HTML, Dataset, Markdown, Metrics, Model, Output, OutputPath, PipelineTaskFinalStatus

NAME = "caspi-round"
CLAIM_MOUNT = "/rounds"
STEPS = ("export", "audit", "gate", "train", "benchmark", "compare", "report", "free")
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Settings:
    """What Kubeflow takes only when a pipeline is compiled; everything else is a parameter of a run."""

    shm: str = "8Gi"
    """/dev/shm of train (as a process) and benchmark: data workers pass batches through it. It is a part of memory."""
    retries: int = 2
    """Tries more. What would only fail again ends at once (caspi.pipeline.ending)."""
    retry_after: int = 30
    """Seconds until a step is tried again; twice as long each time, and five minutes at most."""
    hours: Mapping[str, float] = field(
        default_factory=lambda: {
            "export": 24.0,
            "audit": 24.0,
            "gate": 1.0,
            "train": 336.0,
            "benchmark": 24.0,
            "compare": 2.0,
            "report": 2.0,
            "free": 1.0,
        }
    )
    """How long a try of a step may take; a training by Helm has the deadline of its chart besides."""
    resources: Mapping[str, tuple[str, str]] = field(
        default_factory=lambda: {
            "export": ("2", "4Gi"),
            "audit": ("2", "4Gi"),
            "gate": ("100m", "512Mi"),
            "train": ("1", "2Gi"),
            "benchmark": ("4", "16Gi"),
            "compare": ("1", "2Gi"),
            "report": ("1", "2Gi"),
            "free": ("100m", "512Mi"),
        }
    )
    """CPU and memory that a step asks for: of train by Helm, which only watches."""
    images: tuple[str, str] | None = None
    """Train and launcher. Only for kfp.local, which does not resolve an image that is a parameter."""
    trainer: str | None = None
    """The image of the train step, beside `images`: the launcher where a PyTorchJob trains."""


@dsl.component(base_image=NAME, install_kfp_package=False)
def export(round: str, cluster: str, digest: str, runs: str, dataset: Output[Dataset]) -> NamedTuple(
    "Exported", [("directory", str), ("digest", str)]
):
    from caspi.pipeline import steps

    done = steps.export(round, cluster, digest, runs, dataset.path)
    dataset.metadata.update(done.metadata | done.metrics)
    return done.directory, done.digest


@dsl.component(base_image=NAME, install_kfp_package=False)
def audit(directory: str, export: str, metrics: Output[Metrics], findings: Output[Markdown]) -> str:
    from caspi.pipeline import steps

    done = steps.audit(directory, export, findings.path)
    metrics.metadata.update(done.metrics)
    return done.digest


@dsl.component(base_image=NAME, install_kfp_package=False)
def gate(
    directory: str,
    audit: str,
    by: str,
    reason: str,
    approved: str,
    decided: Output[Markdown],
    decision: OutputPath(str),
) -> str:
    from caspi.pipeline import steps

    return steps.gate(directory, audit, by, reason, approved, decided.path, decision)


@dsl.component(base_image=NAME, install_kfp_package=False)
def train(directory: str, audit: str, train_by: str, run: str, model: Output[Model], metrics: Output[Metrics]) -> str:
    from caspi.pipeline import steps

    done = steps.train(directory, audit, train_by, run, model.path)
    model.metadata.update(done.metadata)
    metrics.metadata.update(done.metrics)
    return done.digest


@dsl.component(base_image=NAME, install_kfp_package=False)
def benchmark(directory: str, export: str, train: str, metrics: Output[Metrics]) -> str:
    from caspi.pipeline import steps

    done = steps.benchmark(directory, export, train)
    metrics.metadata.update(done.metrics)
    return done.digest


@dsl.component(base_image=NAME, install_kfp_package=False)
def compare(directory: str, benchmark: str, metrics: Output[Metrics], verdict: Output[Markdown]) -> str:
    from caspi.pipeline import steps

    done = steps.compare(directory, benchmark, verdict.path)
    metrics.metadata.update(done.metrics)
    return done.digest


@dsl.component(base_image=NAME, install_kfp_package=False)
def report(directory: str, benchmark: str, compare: str, page: Output[HTML]) -> str:
    from caspi.pipeline import steps

    return steps.report(directory, benchmark, compare, page.path).digest


@dsl.component(base_image=NAME, install_kfp_package=False)
def free(round: str, cluster: str, digest: str, runs: str, train_by: str, run: str, status: PipelineTaskFinalStatus):
    from caspi.pipeline import steps

    steps.free(round, cluster, digest, runs, train_by, run, status.state)


def pipeline(settings: Settings = Settings()) -> dsl.base_component.BaseComponent:
    """The pipeline under these settings; README.md says what its parameters mean."""

    @dsl.pipeline(name=NAME, description="A Caspi round: export, audit, gate, train, benchmark, compare, report.")
    def caspi_round(
        round: str,
        cluster: str,
        digest: str,
        image: str,
        launcher: str,
        trainer: str,
        train_by: str = "helm",
        runs: str = CLAIM_MOUNT,
        claim: str = "rounds",
        approve_by: str = "",
        approve_reason: str = "",
        approve_audit: str = "",
        huggingface_secret: str = "huggingface",
        pull_secret: str = "caspi-registry",
        node_selector: dict = {},
        tolerations: list = [],
        benchmark_gpu: str = "nvidia.com/gpu",
        benchmark_gpus: str = "0",
    ):
        run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        trains, launches = settings.images or (image, launcher)
        training = (settings.trainer or trains) if settings.images else trainer

        def placed(task: dsl.PipelineTask, container: str) -> dsl.PipelineTask:
            """Where and how a step runs."""
            cpu, memory = settings.resources[task.name]
            task.set_container_image(container).set_cpu_request(cpu).set_memory_request(memory)
            # A step is done when the round directory says so, which the step itself looks up in seconds. Kubeflow's
            # cache knows only parameters: after the directory is deleted it would hand on records that are gone.
            task.set_caching_options(False)
            if settings.retries:
                task.set_retry(settings.retries, f"{settings.retry_after}s", 2.0, "300s")
            kubernetes.set_timeout(task, int(3600 * settings.hours[task.name]))
            kubernetes.mount_pvc(task, claim, CLAIM_MOUNT)
            kubernetes.use_secret_as_env(task, huggingface_secret, {"token": "HF_TOKEN"}, optional=True)
            kubernetes.set_image_pull_secrets(task, [pull_secret])
            kubernetes.add_node_selector_json(task, node_selector)
            kubernetes.add_toleration_json(task, tolerations)
            if task.name in ("train", "benchmark"):
                kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=settings.shm)
            return task

        freed = free(round=round, cluster=cluster, digest=digest, runs=runs, train_by=train_by, run=run)
        with dsl.ExitHandler(placed(freed, launches), name="round"):
            exported = export(round=round, cluster=cluster, digest=digest, runs=runs)
            place = placed(exported, launches).outputs["directory"]
            audited = audit(directory=place, export=exported.outputs["digest"])
            read = placed(audited, launches).outputs["Output"]
            passed = gate(directory=place, audit=read, by=approve_by, reason=approve_reason, approved=approve_audit)
            # The verdict is what the step returns, not one of several named outputs: kfp.local can't look those up in a
            # condition, and calls that False.
            with dsl.If(placed(passed, launches).outputs["Output"] == "pass", name="passed"):
                trained = train(directory=place, audit=read, train_by=train_by, run=run)
                model = placed(trained, training).outputs["Output"]
                measured = benchmark(directory=place, export=exported.outputs["digest"], train=model)
                placed(measured, trains).set_accelerator_type(benchmark_gpu).set_accelerator_limit(benchmark_gpus)
                measured.register_pipeline_channels([benchmark_gpu, benchmark_gpus])  # kfp 2.17 forgets these two
                scores = measured.outputs["Output"]
                compared = placed(compare(directory=place, benchmark=scores), launches)
                placed(report(directory=place, benchmark=scores, compare=compared.outputs["Output"]), launches)

    return caspi_round


def compile_to(path: Path, settings: Settings = Settings()) -> None:
    """The same bytes for the same settings, wherever and whenever."""
    compiler.Compiler().compile(pipeline(settings), str(path))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pipelines.caspi_round", description=__doc__)
    default = Settings()
    parser.add_argument("-o", "--output", type=Path, default=HERE / f"{NAME}.yaml")
    parser.add_argument("--shm", default=default.shm, help="of train and benchmark (default: %(default)s)")
    parser.add_argument("--retries", type=int, default=default.retries, help="of a step (default: %(default)s)")
    parser.add_argument("--retry-after", type=int, default=default.retry_after, help="seconds (default: %(default)s)")
    parser.add_argument("--timeout", action="append", default=[], metavar="STEP=HOURS", help=", ".join(STEPS))
    parser.add_argument("--resources", action="append", default=[], metavar="STEP=CPU,MEMORY", help="train=2,8Gi")
    given = parser.parse_args(argv)

    def by_step(option: str, values: Sequence[str]) -> dict[str, str]:
        pairs = dict(value.partition("=")[::2] for value in values)
        for step, value in pairs.items():
            if step not in STEPS or not value:
                parser.error(f"{option} {step}={value}: steps are {', '.join(STEPS)}")
        return pairs

    try:
        hours = {step: float(value) for step, value in by_step("--timeout", given.timeout).items()}
    except ValueError as error:
        parser.error(f"--timeout: hours, for example train=48 ({error})")
    resources = {}
    for step, value in by_step("--resources", given.resources).items():
        cpu, comma, memory = value.partition(",")
        if not (cpu and comma and memory):
            parser.error(f"--resources {step}={value}: CPU and memory, for example train=2,8Gi")
        resources[step] = (cpu, memory)
    hours, resources = {**default.hours, **hours}, {**default.resources, **resources}
    settings = Settings(given.shm, given.retries, given.retry_after, hours, resources)
    compile_to(given.output, settings)


if __name__ == "__main__":
    main()
