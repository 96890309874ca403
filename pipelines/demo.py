"""The pipeline on this machine, by kfp.local: the same definition, without Kubeflow.

    python -m pipelines.demo [--runner process|docker] [--runs build/pipeline-demo/runs]

Runs the demo's rounds, then holds every record against those of `caspi run`: equal digests, or exit code 1. With docker
it is the first round, each step in a container of its image: localhost/caspi-train and localhost/caspi-launcher, as
`make images` builds them, through the engine that DOCKER_HOST names.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from caspi.orphans import die_with_parent
from caspi.pipeline.package import pipeline_file
from caspi.records.metrics import metric_lines
from caspi.records.record import STAGES, Record, StageName
from caspi.records.round_dir import RoundDir, open_round, round_path
from caspi.spec import RoundSpec, load_cluster, load_round
from caspi.status import describe, summary

HOUSE = Path(__file__).parents[1]
ROUNDS = ("demo-r1", "demo-r2")
CLUSTER = HOUSE / "clusters" / "laptop.yaml"
IMAGES = ("localhost/caspi-train:latest", "localhost/caspi-launcher:latest")
LOOK_SECONDS = 1.0
Runner = Literal["process", "docker"]


def run_pipeline(
    round_file: Path,
    cluster_file: Path,
    runs: Path,
    folder: Path,
    runner: Runner = "process",
    retries: int | None = None,
    **parameters: str,
) -> None:
    """Run the pipeline of one round to its end; training is a process of its step. RuntimeError when a step failed.

    `folder` is where artifacts go. The data's folder is taken from the files, as `caspi run` does. `retries` other than
    the compiled pipeline's, and all of docker, need the definition anew; it is the same otherwise.
    """
    from kfp import components, local

    from pipelines.caspi_round import Settings, pipeline

    spec, cluster = load_round(round_file), load_cluster(cluster_file)
    root = (round_file.parent / (cluster.data_root or "")).resolve()
    given = {
        "round": spec.model_dump_json(exclude_none=True),
        "cluster": cluster.model_copy(update={"data_root": str(root)}).model_dump_json(exclude_none=True),
        "digest": spec.digest,
        "image": IMAGES[0],
        "launcher": IMAGES[1],
        "trainer": IMAGES[0],
        "train_by": "process",
        "runs": str(runs.resolve()),
        **parameters,
    }
    runs.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    default = Settings()
    tries = default.retries if retries is None else retries
    # Before every run: kfp.local deletes its work space after each.
    if runner == "docker":
        local.init(_docker(runs, [root, *_read(spec, root)]), pipeline_root=str(folder))
        run = pipeline(Settings(retries=tries, images=IMAGES))
    else:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
        same = tries == default.retries
        run = components.load_component_from_file(str(pipeline_file())) if same else pipeline(Settings(retries=tries))
    with warnings.catch_warnings(), _containers(runner):
        warnings.simplefilter("ignore")  # of what only a cluster has: claims, secrets, resources
        run(**given)


def _read(spec: RoundSpec, root: Path) -> list[Path]:
    """The folders and files of this machine that a round reads."""
    named = [one.path for one in spec.data.sources] + [one.path for one in spec.benchmark.sets]
    return sorted({(root / path).resolve() for path in named if path})


def _docker(runs: Path, read: Sequence[Path]) -> Any:
    """Steps in containers that see the runs and the data where they are here."""
    from docker.types import Mount

    from pipelines.containers import docker_runner, this_user

    mounts = [Mount(str(runs.resolve()), str(runs.resolve()), type="bind")]
    mounts += [Mount(str(path), str(path), type="bind", read_only=True) for path in read]
    return docker_runner(mounts, user=this_user())


@contextmanager
def _containers(runner: Runner) -> Iterator[None]:
    """Where steps are containers: RuntimeError with the code of the first that failed."""
    if runner == "process":
        yield
        return
    from pipelines.containers import ends_known

    with ends_known() as ended:
        yield
        if failed := [f"step {one.step} ended with {one.code}:\n{one.log}" for one in ended() if one.code]:
            raise RuntimeError(failed[0])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo", description="The demo's rounds by kfp.local.")
    parser.add_argument("--runner", choices=("process", "docker"), default="process")
    parser.add_argument("--runs", type=Path, default=HOUSE / "build" / "pipeline-demo" / "runs")
    parser.add_argument("--compare-with", type=Path, default=HOUSE / "runs", help="where `caspi run` put its runs")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    folder = given.runs.parent
    if given.one:
        die_with_parent()
        return _one(given.one, given.runs, folder / "artifacts", given.runner)
    if given.runner == "docker" and (problem := _no_engine()):
        print(problem, file=sys.stderr)
        return 2
    rounds = [HOUSE / "rounds" / f"{name}.yaml" for name in (ROUNDS[:1] if given.runner == "docker" else ROUNDS)]
    for number, round_file in enumerate(rounds, start=1):
        print(f"round {number} of {len(rounds)}: {round_file.stem} by kfp.local ({given.runner})", flush=True)
        log = folder / f"{round_file.stem}.log"
        if code := _watched(round_file, given.runs, log, given.runner):
            print("\n".join(log.read_text(encoding="utf-8").splitlines()[-30:]))
            print(f"{round_file.stem} failed; the steps' output is in {log}", file=sys.stderr)
            return code
    differ = False
    for round_file in rounds:
        differ |= _compared(round_file, given.runs, given.compare_with)
    return 1 if differ else 0


def _no_engine() -> str:
    """Why no container can be started, if so."""
    import docker

    try:
        engine = docker.from_env()
        engine.ping()
        for image in IMAGES:
            engine.images.get(image)
    except docker.errors.ImageNotFound:
        return f"{image}: not there; `make images` builds it"
    except docker.errors.DockerException as error:
        return (
            f"no container engine answers ({error}); DOCKER_HOST names one: "
            'eval "$(tests/cluster/podman up)" starts podman as one'
        )
    return ""


def _one(round_file: Path, runs: Path, folder: Path, runner: Runner) -> int:
    """In the process whose output is the log."""
    try:
        run_pipeline(round_file, CLUSTER, runs, folder, runner)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _watched(round_file: Path, runs: Path, log: Path, runner: Runner) -> int:
    """Run the pipeline in a process, and say how far its round is, from its records; the exit code."""
    path = round_path(runs, load_round(round_file))
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipelines.demo", "--runner", runner]
    command += ["--runs", str(runs), "--one", str(round_file)]
    began, before, said = time.monotonic(), _records(path), ""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=HOUSE, stdout=file, stderr=subprocess.STDOUT)
        old = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            while process.poll() is None:
                time.sleep(LOOK_SECONDS)
                said = _say_progress(path, before, said, began)
        finally:
            process.terminate()
            code = process.wait()
            signal.signal(signal.SIGTERM, old)
    _say_progress(path, before, said, began)
    took = time.monotonic() - began
    print(
        f"  {took // 60:.0f}:{took % 60:04.1f} min in all" + (", nothing was to do" if _records(path) == before else "")
    )
    return code


def _say_progress(path: Path, before: dict[StageName, Record], said: str, began: float) -> str:
    """Print what changed since the last look; `said` is what was known then."""
    if not (path / "cluster.yaml").is_file():
        return said
    found = _records(path)
    known = said.split("|")[0].split(",")
    for stage, record in found.items():
        if stage not in known and record != before.get(stage):
            print(f"  {time.monotonic() - began:6.1f} s  {stage:<10} {summary(record)}", flush=True)
    training = ""
    if "train" not in found and "audit" in found:
        training = _training(path)
        if training and training != said.partition("|")[2]:
            print(f"  {time.monotonic() - began:6.1f} s  train      {training}", flush=True)
    return f"{','.join(stage for stage in found)}|{training}"


def _training(path: Path) -> str:
    """Where training stands, at every forecast of it."""
    lines = [line for line in metric_lines(path / "train" / "metrics.jsonl") if line["kind"] == "forecast"]
    if not lines:
        return ""
    left = max(0.0, lines[-1]["total_seconds"] - lines[-1]["seconds"])
    return f"at step {lines[-1]['step']:,}, about {left // 60:.0f}:{left % 60:02.0f} min of training left"


def _compared(round_file: Path, runs: Path, others: Path) -> bool:
    """Print the records of both beside each other; whether any differ. What was not run yet is run now."""
    spec = load_round(round_file)
    other = round_path(others, spec)
    if not _finished(other):
        print(f"`caspi run` of {spec.round}, to compare with", flush=True)
        command = [sys.executable, "-m", "caspi", "run", str(round_file), "-c", str(CLUSTER), "--runs", str(others)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=HOUSE)
    mine, theirs = _records(round_path(runs, spec)), _records(other)
    print(f"{spec.round:<12} {'the pipeline':<14} {'caspi run':<14}")
    differ = False
    for stage in STAGES:
        both = [found[stage].digest if stage in found else None for found in (mine, theirs)]
        if not any(both):
            continue
        same = both[0] == both[1]
        differ |= not same
        shown = [(digest or "none")[:12] for digest in both]
        print(f"  {stage:<10} {shown[0]:<14} {shown[1]:<14} {'equal' if same else 'DIFFERENT'}")
    return differ


def _finished(path: Path) -> bool:
    return (path / "cluster.yaml").is_file() and describe(open_round(path))["next"] is None


def _records(path: Path) -> dict[StageName, Record]:
    if not (path / "cluster.yaml").is_file():
        return {}
    round_dir: RoundDir = open_round(path)
    return {stage: record for stage in STAGES if (record := round_dir.record(stage))}


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
