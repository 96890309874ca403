"""The command line as people meet it: quick, helpful, the same for machines."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from caspi.cli import app
from caspi.errors import CaspiError
from caspi.files import write_text
from caspi.records.round_dir import create
from caspi.spec import ClusterSpec, RoundSpec, parse
from tests.command import caspi
from tests.test_bad_input import GOOD

HOUSE = Path(__file__).parents[1]
COMMANDS = ["init", "plan", "doctor", "run", "stage", "benchmark", "approve", "serve", "report", "preview", "push"]
COMMANDS += ["status", "submit", "logs", "cancel", "lock", "verify-locks", "flux", "worker", "prepare", "fetch"]


def test_help_lists_the_commands() -> None:
    text = caspi("--help").out
    assert [
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    ] == COMMANDS
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\s", text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    done = caspi(command, "--help")
    assert done.code == 0
    assert f"Example: caspi {command} " in " ".join(done.out.split())


def test_help_is_quick_and_needs_no_torch() -> None:
    """Three starts; the quickest counts, since the machine may be busy."""
    probe = (
        "import sys; from caspi.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'kubernetes', 'kfp', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run = subprocess.run([sys.executable, "-c", probe, "--help"], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - start)
        assert run.returncode == 0, run.stderr
    assert min(times) < 0.5, times


def test_plan_needs_no_torch() -> None:
    probe = (
        "import sys; from caspi.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'qwen_asr'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    argv = ["plan", "rounds/hebrew-r2.yaml", "--cluster", "clusters/2xa100-40gb.yaml"]
    run = subprocess.run([sys.executable, "-c", probe, *argv], capture_output=True, text=True, check=False, cwd=HOUSE)
    assert run.returncode == 0, run.stderr


def test_init_writes_a_round_that_plans(tmp_path: Path) -> None:
    done = caspi("init", "yiddish-r1", "--data", "data/crowd", "--language", "Yiddish", "--folder", str(tmp_path))
    assert done.code == 0, done.err
    round_file, cluster_file = tmp_path / "rounds/yiddish-r1.yaml", tmp_path / "clusters/laptop.yaml"
    assert f"wrote {round_file}" in done.out
    again = caspi("init", "yiddish-r1", "--folder", str(tmp_path))
    assert again.code == 2
    assert "is there already" in again.err
    big = tmp_path / "big.yaml"
    big.write_text("gpus_per_node: 1\ngpu: {product: H200, memory: 139GiB}\n", encoding="utf-8")
    assert cluster_file.exists()
    planned = caspi("plan", str(round_file), "--cluster", str(big))
    assert planned.code == 0, planned.err
    hub = caspi("init", "hub-r1", "--data", "owner/name@0123abcd", "--folder", str(tmp_path))
    assert hub.code == 0
    assert "hub: owner/name, revision: 0123abcd" in (tmp_path / "rounds/hub-r1.yaml").read_text(encoding="utf-8")


def test_init_from_the_command_of_the_upstream_script(tmp_path: Path) -> None:
    """What it says, what it writes, and that the next command which it names works."""
    command = "torchrun --nproc_per_node=8 qwen3_asr_sft.py --train_file a.jsonl --eval_file b.jsonl --lr 2e-4"
    done = caspi("init", "mine", "--folder", str(tmp_path), "--from-sft", command)
    assert done.code == 0, done.err
    assert "corrected: 0.0002 is 10 times the rate of the authors" in done.out
    round_file, cluster_file = tmp_path / "rounds/mine.yaml", tmp_path / "clusters/mine.yaml"
    assert done.out.endswith(f"next: caspi doctor {round_file} --cluster {cluster_file}\n")
    planned = caspi("plan", str(round_file), "--cluster", str(cluster_file))
    assert planned.code == 0, planned.err
    assert re.search(r"^batch +1,?024 utterances a step over 8,", planned.out, re.MULTILINE), planned.out
    looked_at = caspi("doctor", str(round_file), "--cluster", str(cluster_file))
    assert 'a.jsonl": no such file or folder' in looked_at.out.replace("'", '"')
    assert looked_at.code == 2
    both = caspi("init", "both", "--folder", str(tmp_path), "--data", "x", "--from-sft", command)
    assert (both.code, both.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("command", [("preview",), ("push", "--to", "owner/name")])
def test_what_needs_a_round_that_ran_leaves_no_empty_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    good = tmp_path / "tidy.yaml"
    good.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    done = caspi(*command, str(good), "--runs", str(tmp_path / "runs"))
    assert (done.code, done.err) == (2, f"{good}: has not run yet; run it first: caspi run {good}\n")
    assert not (tmp_path / "runs").exists()


def test_status_of_a_round_that_was_not_run(tmp_path: Path) -> None:
    good = tmp_path / "tidy.yaml"
    good.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    caspi("status", str(good), "--runs", str(tmp_path / "runs"))
    done = caspi("status", "--runs", str(tmp_path / "runs"), "--json")
    values = json.loads(done.out)
    assert [one["round"] for one in values] == ["tidy"]
    assert values[0]["stages"]["export"]["status"] == "to do"
    assert values[0]["next"].startswith("caspi run ")
    assert "to do" in caspi("status", "tidy", "--runs", str(tmp_path / "runs")).out


def test_status_tells_running_from_stopped(tmp_path: Path) -> None:
    round_dir = create(tmp_path, parse(GOOD, RoundSpec, "good"), ClusterSpec(), tmp_path)
    write_text(round_dir.folder("train") / "metrics.jsonl", '{"kind": "train", "step": 7, "loss": 1.5}\n{"torn')
    assert re.search(r"train\s+stopped\s+at step 7, loss 1.500", caspi("status", str(round_dir.path)).out)
    with (round_dir.path / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert re.search(r"train\s+running\s+at step 7", caspi("status", str(round_dir.path)).out)


def test_status_says_what_training_has_cost(tmp_path: Path) -> None:
    """By the price in the cluster file; the forecast once there is one; nothing where there is no price."""
    limited = {**GOOD, "train": {**GOOD["train"], "stop": {"cost": "60 USD"}}}
    two = {"gpus_per_node": 2, "gpu": {"product": "A100", "memory": "40GiB", "price": "1.60 USD/h"}}
    priced = create(tmp_path, parse(limited, RoundSpec, "good"), parse(two, ClusterSpec, "two"), tmp_path)
    lines = ['{"kind": "train", "step": 50, "loss": 1.5, "seconds": 900.0}']
    write_text(priced.folder("train") / "metrics.jsonl", "\n".join(lines))
    assert "at step 50, loss 1.500, spent 0.80 USD of 60.00 at most\n" in caspi("status", str(priced.path)).out
    forecast = {"kind": "forecast", "step": 100, "seconds": 1800.0, "total_seconds": 3600.0}
    lines.append(json.dumps({**forecast, "cost": 3.2, "currency": "USD"}))
    write_text(priced.folder("train") / "metrics.jsonl", "\n".join(lines))
    assert "spent 1.60 USD of 60.00 at most, 1:00 h in all, 3.20 USD" in caspi("status", str(priced.path)).out
    (told,) = json.loads(caspi("status", str(priced.path), "--json").out)
    assert told["cost"] == {"spent": 1.6, "forecast": 3.2, "limit": 60.0, "currency": "USD"}
    free = create(tmp_path, parse({**GOOD, "round": "free"}, RoundSpec, "good"), ClusterSpec(), tmp_path)
    write_text(free.folder("train") / "metrics.jsonl", lines[0])
    assert "loss 1.500\n" in caspi("status", str(free.path)).out
    assert json.loads(caspi("status", str(free.path), "--json").out)[0]["cost"] is None


def test_exit_codes_are_in_the_docs() -> None:
    table = (HOUSE / "docs/exit-codes.md").read_text(encoding="utf-8")
    kinds = [CaspiError, *CaspiError.__subclasses__()]
    for kind in kinds:
        if "exit_code" in vars(kind):
            assert re.search(rf"^\| {kind.exit_code} \|", table, re.MULTILINE), kind


def test_version() -> None:
    assert re.fullmatch(r"caspi \d+\.\d+\.\d+\n", caspi("--version").out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """What `caspi --install-completion` puts into a shell."""
    command = str(Path(sys.executable).with_name("caspi"))
    environment = {**os.environ, "_CASPI_COMPLETE": f"source_{shell}"}
    run = subprocess.run([command], capture_output=True, text=True, check=True, env=environment)
    assert f"complete_{shell}" in run.stdout
