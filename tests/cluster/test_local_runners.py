"""Steps of a pipeline in the real images, by kfp.local's Docker runner: no Kubeflow, no cluster, the same containers.

They run as pods would: as the image's user, without a file system to write to but /tmp, the home, and what is mounted.
"""

# No `from __future__ import annotations` here: kfp reads the types of a component from its annotations themselves.
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from docker.types import Mount
from kfp import dsl, local
from kfp.dsl import Dataset, Input, Metrics, Output
from pipelines.caspi_round import Settings, pipeline
from pipelines.containers import Ended, docker_runner, ends_known, this_user

from caspi.records.record import STAGES, Record, read_record
from caspi.spec.load import load_round
from tests.cluster.kube import HOUSE, UID

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:.*have no effect in the current local runner"),
]

TRAIN, LAUNCHER = "localhost/caspi-train:latest", "localhost/caspi-launcher:latest"
"""As images/build names them on the machine that builds."""

SMALL = {
    "round": "small",
    "seed": 42,
    "model": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
    "data": {
        "sources": [{"name": "studio", "path": "../demo/studio", "files": "train-00000*.parquet", "domain": "studio"}],
        "text": "hebrew-2",
        "keep": {"seconds": [0.4, 12], "characters_per_second": [1, 30]},
        "split": {"by": ["recording", "speaker", "text"], "eval": "8%"},
    },
    "audit": {
        "sample": {"share": "100%", "at_least": 50},
        "proceed": {"low_quality": "80%", "any_domain": "90%"},
        "caution": {"low_quality": "90%", "any_domain": "90%"},
        "leave_out": [],
    },
    "train": {
        "global_batch": 16,
        "precision": "fp32",
        "phases": [{"name": "full", "epochs": 2, "rates": {"all": 1.0e-3}}],
        "schedule": {"shape": "cosine", "warmup_steps": 5},
        "evaluate": {"every_steps": 20, "utterances": 10},
        "keep": {"every_steps": 20, "last": 1, "best": 1},
    },
    "benchmark": {
        "sets": [{"name": "voices", "path": "../demo/test", "files": "clean*.parquet", "domain": "studio"}],
        "profiles": ["hebrew-fair"],
    },
}
"""The smallest round that trains: half a minute of processor time."""
LAPTOP = {"nodes": 1, "processes_per_node": 1, "workers": 1, "memory": "4GiB"}


@pytest.fixture(scope="session", autouse=True)
def _there() -> None:
    """No cluster is needed here: with CASPI_TRAIN_IMAGE and CASPI_LAUNCHER_IMAGE set nothing is built or pushed."""


Ask = Callable[[], list[Ended]]


@pytest.fixture
def ended(engine: None) -> Iterator[Ask]:
    with ends_known() as ask:
        yield ask


def give(folder: Path) -> Path:
    """A folder that the user of the images can write to."""
    folder.mkdir(parents=True)
    if os.getuid() == 0:
        os.chown(folder, UID, UID)
    return folder


def begin(folder: Path, mounts: tuple[Mount, ...] = ()) -> None:
    """Steps run in containers from now on; their artifacts go into `folder`."""
    # Root gives folders to the image's user; anybody else is that user.
    who = {} if os.getuid() == 0 else {"user": this_user()}
    local.init(docker_runner(mounts, **who), pipeline_root=str(give(folder)))


@dsl.component(base_image=LAUNCHER, install_kfp_package=False)
def note(text: str, found: Output[Dataset]) -> str:
    import importlib.util
    import os
    from pathlib import Path

    from caspi.files import digest

    assert importlib.util.find_spec("torch") is None, "the launcher has no torch"
    try:
        Path("/opt/caspi/stray").touch()
    except OSError:
        (Path.home() / "here").touch()
    else:
        raise AssertionError("the file system of the image can be written to")
    Path(found.path).write_text(text, encoding="utf-8")
    found.metadata["user"] = f"{os.getuid()}:{os.getgid()}"
    return digest(text)


@dsl.component(base_image=TRAIN, install_kfp_package=False)
def weigh(found: Input[Dataset], digest: str, metrics: Output[Metrics]) -> float:
    from pathlib import Path

    import torch

    from caspi import files

    text = Path(found.path).read_text(encoding="utf-8")
    assert files.digest(text) == digest
    assert found.metadata["user"]
    weight = float(torch.ones(len(text)).sum())
    metrics.log_metric("weight", weight)
    return weight


@dsl.component(base_image=LAUNCHER, install_kfp_package=False)
def refuse(reason: str) -> str:
    from caspi.errors import GateRefused
    from caspi.pipeline.ending import one_line

    with one_line():
        raise GateRefused(reason)


@dsl.component(base_image=LAUNCHER, install_kfp_package=False)
def spend(verdict: str, spent: Output[Dataset]):
    from pathlib import Path

    Path(spent.path).write_text("GPU hours", encoding="utf-8")


def test_a_step_reads_what_another_image_made(ended: Ask, tmp_path: Path) -> None:
    @dsl.pipeline(name="two-steps")
    def two(text: str) -> float:
        noted = note(text=text)
        return weigh(found=noted.outputs["found"], digest=noted.outputs["Output"]).outputs["Output"]

    begin(tmp_path / "root")
    done = two(text="ויש 'גרש'")
    steps = ended()
    assert [(each.step, each.code) for each in steps] == [("note", 0), ("weigh", 0)], steps
    assert done.output == 9.0
    (found,) = (tmp_path / "root").glob("*/note/found")
    (metrics,) = (tmp_path / "root").glob("*/weigh/executor_output.json")
    assert found.read_text(encoding="utf-8") == "ויש 'גרש'"
    assert found.stat().st_uid == (UID if os.getuid() == 0 else os.getuid())
    assert json.loads(metrics.read_text())["artifacts"]["metrics"]["artifacts"][0]["metadata"] == {"weight": 9.0}


def test_a_refusal_is_its_line_and_its_code_and_ends_the_run(ended: Ask, tmp_path: Path) -> None:
    @dsl.pipeline(name="refused")
    def refused(reason: str):
        spend(verdict=refuse(reason=reason).output)

    begin(tmp_path / "root")
    with pytest.raises(RuntimeError, match="refuse"):
        refused(reason="the audit says STOP: 40% of phone is noise")
    (step,) = ended()
    assert (step.step, step.code) == ("refuse", 3)
    assert step.log.splitlines()[-1] == "the audit says STOP: 40% of phone is noise"
    assert "Traceback" not in step.log
    assert not list((tmp_path / "root").rglob("spent"))


def test_the_round_in_the_images_is_the_round_of_caspi_run(
    ended: Ask, measured: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    """Another place, another user, another installation of the same packages: the same records."""
    (tmp_path / "rounds").mkdir()
    (tmp_path / "demo").symlink_to(HOUSE / "demo")
    round_file, cluster_file = tmp_path / "rounds/small.yaml", tmp_path / "laptop.yaml"
    round_file.write_text(yaml.safe_dump(SMALL))
    cluster_file.write_text(yaml.safe_dump(LAPTOP))
    command = [sys.executable, "-m", "caspi", "run", round_file, "--cluster", cluster_file, "--runs", tmp_path / "here"]
    began = time.monotonic()
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    measured.append(("the smallest round, caspi run", f"{time.monotonic() - began:.0f} s", ""))
    digest = load_round(round_file).digest

    there = give(tmp_path / "there")
    mounts = (
        Mount("/rounds", str(there), type="bind"),
        Mount("/data/rounds", str(tmp_path / "rounds"), type="bind", read_only=True),
        Mount("/data/demo", str(HOUSE / "demo"), type="bind", read_only=True),
    )
    begin(tmp_path / "root", mounts)

    def run(what: str) -> list[Ended]:
        began = time.monotonic()
        pipeline(Settings(images=(TRAIN, LAUNCHER)))(
            round=round_file.read_text(),
            cluster=yaml.safe_dump(LAPTOP | {"data_root": "/data/rounds"}),
            digest=digest,
            image=TRAIN,
            launcher=LAUNCHER,
            trainer=TRAIN,
            train_by="process",
        )
        measured.append((what, f"{time.monotonic() - began:.0f} s", "eight containers, one after the other"))
        return ended()

    steps = run("the same by the pipeline in the images")
    assert {each.step: each.code for each in steps} == dict.fromkeys([*STAGES, "gate", "free"], 0), steps
    name = f"small-{digest[:8]}"
    mine, theirs = records(tmp_path / "here" / name), records(there / name)
    assert {stage: found.digest for stage, found in theirs.items()} == {
        stage: found.digest for stage, found in mine.items()
    }
    assert mine.keys() == set(STAGES) - {"compare"}  # it has no parent
    # Records hold no path and no Python: the pinned packages are what has to be the same, and the processor.
    for stage in ("train", "benchmark"):
        packages = [found[stage].circumstances.versions | {"python": ""} for found in (mine, theirs)]
        assert packages[0] == packages[1], stage
    (page,) = (tmp_path / "root").glob("*/report/page")
    assert page.read_bytes() == (there / name / "report/index.html").read_bytes()

    # Once more: every step adopts what is there.
    assert {each.code for each in run("and once more: every step adopts")} == {0}
    assert records(there / name) == theirs


def records(round_dir: Path) -> dict[str, Record]:
    found = {stage: read_record(round_dir / stage / "record.json") for stage in STAGES}
    return {stage: record for stage, record in found.items() if record}
