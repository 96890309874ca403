"""`caspi worker`, the entrypoint of a training pod: real processes that are asked to stop, killed, or too late."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from caspi.errors import UserError
from caspi.execution.cgroup import Memory, memory, out_of_memory
from caspi.execution.exporter import Membership, PodMetrics, export
from caspi.execution.last_message import handed_on
from caspi.execution.losses import FRUITLESS, Losses
from caspi.execution.standing import standing
from caspi.execution.starts import Deadline, Starts, read_starts
from caspi.execution.surroundings import OnDisk, is_trained
from caspi.execution.worker import Settings, exit_code
from caspi.files import write_text
from caspi.launched import Ended, World
from caspi.records.heartbeat import parse_heartbeat, parse_last_message
from caspi.records.record import Circumstances, Record, write_record
from caspi.records.round_dir import RoundDir, create
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.spec.values import HourlyPrice
from tests.command import caspi
from tests.ranks import free_port
from tests.test_bad_input import GOOD
from tests.test_elastic import listens

PATIENCE = 60.0
POD = """
import os, sys
from pathlib import Path
import caspi.execution.worker as worker
import caspi.execution.agent as agent
import caspi.execution.standing as standing
agent.SETTLE_SECONDS = 0.2
standing.HEARTBEAT_SECONDS, standing.LOOK_SECONDS = 1.0, 0.1
worker.training_command = lambda path: [sys.executable, "-c", sys.argv[2], str(path)]
worker.run_worker(Path(sys.argv[1]), os.environ)
"""
RANK = """
import json, os, signal, sys, time
from pathlib import Path
from caspi.launched import die_with_agent, tell_agent
die_with_agent()
folder, rank = Path(sys.argv[1]) / "train", int(os.environ["RANK"])
def checkpoint(step):
    (folder / f"checkpoints/step-{step:06d}").mkdir(parents=True, exist_ok=True)
    (folder / f"checkpoints/step-{step:06d}/checkpoint.json").write_text("{}")
    (folder / "latest").write_text(f"step-{step:06d}\\n")
def end(code, line):
    tell_agent(line)
    os._exit(code)
def ready():
    (folder / f"ready-{rank}").touch()
def wait(seconds=60):
    ready()
    time.sleep(seconds)
"""
SAVES = "signal.signal(signal.SIGTERM, lambda *_: (checkpoint(8), end(75, 'asked to stop: step 8 of 9 is saved')))\n"


# --- codes


@pytest.mark.parametrize(
    ("code", "mapped"), [*((code, code) for code in range(7)), (75, 203), (69, 197), (130, 130), (137, 137), (139, 139)]
)
def test_what_the_operator_understands(code: int, mapped: int) -> None:
    """1-127 fails the job at once, 128 and above gets a new pod."""
    assert exit_code(code) == mapped
    assert (mapped >= 128) == (code in (75, 69) or code >= 128)


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("end(0, '')", 0, ""),
        ("end(2, 'bad input')", 2, "bad input"),
        ("end(4, 'it failed')", 4, "it failed"),
        ("end(6, 'too dear')", 6, "too dear"),
        ("end(69, 'rank 0 hangs')", 197, "rank 0 hangs"),
        ("os.kill(os.getpid(), 9)", 137, "rank 0 was killed (SIGKILL): out of memory, or from outside"),
        ("raise KeyError('x')", 1, "rank 0 ended with exit code 1"),
    ],
)
def test_each_end_is_in_the_last_message(what: str, code: int, line: str, tmp_path: Path) -> None:
    round_dir = made(tmp_path)
    code_found, said = ran(round_dir, f"checkpoint(600)\n{what}", PET_MAX_RESTARTS="0")
    assert code_found == code
    message = parse_last_message((tmp_path / "termination").read_text())
    assert message is not None
    assert (exit_code(message.code), message.line, message.checkpoint) == (code, line, 600)
    assert line in said


def test_without_a_round_it_says_so(tmp_path: Path) -> None:
    missing = RoundDir(tmp_path / "typo", made(tmp_path).spec, ClusterSpec())
    code, said = ran(missing, "end(0, '')")
    assert (code, said) == (2, f"{missing.path}: no round directory: it has no round.yaml\n")
    assert not missing.path.exists(), "nothing is written"


def test_what_the_init_container_could_not_fetch(tmp_path: Path) -> None:
    """`caspi fetch` ends with 0 there, and the worker with its code: else the operator starts pods anew for ever."""
    round_dir, failure = made(tmp_path), tmp_path / "failure.json"
    files = [f"--{name}={round_dir.path}/{name}.yaml" for name in ("round", "cluster")]
    command = [*files, f"--runs={tmp_path}", "--digest", "0" * 64, f"--failure-to={failure}"]
    assert caspi("fetch", *command).code == 0 and "000000000000" in failure.read_text()
    code, said = ran(round_dir, "end(0, '')", CASPI_FETCH_FAILURE=str(failure))
    assert code == 2 and "fetch: " in said and "000000000000" in said
    with handed_on(failure):
        pass
    assert not failure.exists(), "a fetch that does well forgets it"


def test_a_fault_is_told_too(tmp_path: Path) -> None:
    round_dir = made(tmp_path)
    (round_dir.folder("train") / "starts" / "toy-worker-0.json").mkdir(parents=True)
    code, said = ran(round_dir, "end(0, '')")
    assert code == 1 and "Traceback" in said
    assert "a fault in Caspi, please report it: IsADirectoryError" in (tmp_path / "termination").read_text()


def test_the_environment_of_the_operator() -> None:
    found = Settings.of(
        {
            "POD_NAME": "toy-worker-1",
            "PET_NNODES": "1:3",
            "PET_NPROC_PER_NODE": "8",
            "PET_RDZV_ENDPOINT": "toy-worker-0:23456",
            "PET_RDZV_ID": "toy-12345678",
            "PET_MAX_RESTARTS": "0",
            "CASPI_STARTS": "5",
            "CASPI_DEADLINE": "604800",
            "CASPI_METRICS_PORT": "9100",
        }
    )
    assert (found.name, found.nnodes, found.processes) == ("toy-worker-1", "1:3", "8")
    assert (found.endpoint, found.meeting, found.restarts) == ("toy-worker-0:23456", "toy-12345678", 0)
    assert (found.starts, found.deadline, found.metrics_port) == (5, 604800, 9100)
    assert Settings.of({}).restarts == 3
    with pytest.raises(UserError, match='CASPI_DEADLINE: "a week" is no whole number'):
        Settings.of({"CASPI_DEADLINE": "a week"})


# --- SIGTERM at any moment


def test_asked_to_stop_while_it_starts_and_while_it_waits(tmp_path: Path) -> None:
    round_dir, port = made(tmp_path), free_port()
    others = {"PET_NNODES": "2:3", "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}"}
    log = round_dir.folder("train") / "logs" / "toy-worker-0.log"
    for moment, here in {"torch is imported": log.exists, "it waits for others": lambda: listens(port)}.items():
        with started(round_dir, "end(0, '')", **others) as pod:
            until(here, pod)
            clock = time.monotonic()
            pod.send_signal(signal.SIGTERM)
            assert pod.wait(PATIENCE) == 203, moment
            print(f"{moment}: {time.monotonic() - clock:.1f} s")
        assert '"code": 75' in (tmp_path / "termination").read_text()
    assert read_starts(round_dir.folder("train") / "starts/toy-worker-0.json").in_vain == 0


def test_asked_to_stop_while_it_trains_it_saves(tmp_path: Path) -> None:
    round_dir = made(tmp_path)
    with started(round_dir, SAVES + "wait()", CASPI_STARTS="1") as pod:
        until((round_dir.folder("train") / "ready-0").exists, pod)
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(PATIENCE) == 203
    message = parse_last_message((tmp_path / "termination").read_text())
    assert message is not None and (message.code, message.checkpoint) == (75, 8)


@pytest.mark.skipif(os.getuid() != 0, reason="a pid namespace of one's own needs root")
@pytest.mark.parametrize(("first", "code"), [("import caspi.first", 143), ("pass", None)])
def test_process_1_is_not_deaf(first: str, code: int | None, tmp_path: Path) -> None:
    """The twin, without it, does not notice the signal."""
    ready = tmp_path / "ready"
    program = f"{first}\nimport sys, time\nopen(sys.argv[1], 'w').close()\ntime.sleep(60)"
    with process_1(program, str(ready)) as (outside, inside):
        until(ready.exists, outside)
        os.kill(inside(), signal.SIGTERM)
        if code is None:
            with pytest.raises(subprocess.TimeoutExpired):
                outside.wait(1)
        else:
            assert outside.wait(PATIENCE) == code


@pytest.mark.skipif(os.getuid() != 0, reason="a pid namespace of one's own needs root")
@pytest.mark.parametrize(("bury", "left"), [(True, 0), (False, 1)])
def test_process_1_buries_orphans(bury: bool, left: int, tmp_path: Path) -> None:
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'pass', 'orphan'])"
    program = f"""
import os, subprocess, sys, time
from caspi.orphans import bury_orphans
subprocess.run([sys.executable, "-c", {orphan!r}])
time.sleep(1)
if {bury}:
    bury_orphans()
children = open(f"/proc/thread-self/children").read().split()
open(sys.argv[1] + ".part", "w").write(str(len(children)))
os.rename(sys.argv[1] + ".part", sys.argv[1])
"""
    with process_1(program, str(tmp_path / "left"), "--mount-proc") as (outside, _):
        assert outside.wait(PATIENCE) == 0
    assert int((tmp_path / "left").read_text()) == left


# --- what is remembered between pods


def test_done_before_it_meets_nobody(tmp_path: Path) -> None:
    round_dir = made(tmp_path)
    alone = {"PET_NNODES": "2:3", "PET_RDZV_ENDPOINT": f"127.0.0.1:{free_port()}"}
    recorded(round_dir, "succeeded")
    code, said = ran(round_dir, "end(4, 'started')", **alone)
    assert code == 0 and "training has succeeded before; nothing to do" in said
    assert parse_last_message((tmp_path / "termination").read_text()) is not None


@pytest.mark.parametrize(("status", "spec"), [("failed", None), ("succeeded", "0" * 64), (None, None)])
def test_not_done_before(status: str | None, spec: str | None, tmp_path: Path) -> None:
    """A failure, and the record of another round, are no reason not to train."""
    round_dir = made(tmp_path)
    if status:
        recorded(round_dir, status, spec)
    assert not is_trained(round_dir) and not OnDisk(round_dir).done()
    assert ran(round_dir, "end(5, 'it was started')")[0] == 5


def test_the_deadline_stops_training_and_later_starts(tmp_path: Path) -> None:
    round_dir = made(tmp_path)
    code, said = ran(round_dir, SAVES + "wait()", CASPI_DEADLINE="2")
    assert code == 6
    first = r"deadline: 2 s since training began at \S+, step 8 is saved; raise `deadline`, then submit again"
    assert re.search(first, said)
    (round_dir.folder("train") / "ready-0").unlink()
    code, said = ran(round_dir, "wait()", CASPI_DEADLINE="2", POD_NAME="toy-worker-7")
    assert code == 6 and re.search(first, said)
    assert not (round_dir.folder("train") / "ready-0").exists(), "nothing was started"
    assert ran(round_dir, "end(0, '')", CASPI_DEADLINE="1000")[0] == 0, "raised, it goes on"


def test_a_deadline_in_words() -> None:
    limit = Deadline(began=1_763_740_800.0, seconds=604_800)
    assert limit.due(limit.began + 604_799, str) is None
    ended = limit.due(limit.began + 604_800, str)
    assert ended is not None and ended.code == 6
    assert "604,800 s since training began at 2025-11-21T16:00:00Z, there is no checkpoint yet" in ended.line


def test_a_pod_that_is_killed_again_and_again(tmp_path: Path) -> None:
    round_dir = made(tmp_path)
    for _ in range(2):
        killed(round_dir, "checkpoint(600)\nwait()")
    killed(round_dir, "checkpoint(600)\nwait()")  # the first life found no checkpoint: it was not in vain
    code, said = ran(round_dir, "end(0, '')", CASPI_STARTS="2")
    assert code == 4
    assert (
        "toy-worker-0 was started 2 times since the checkpoint of step 600 and was killed each time: out of memory "
        "(raise workers.resources.memory)" in said
    )
    assert ran(round_dir, "end(0, '')", CASPI_STARTS="2")[0] == 0, "submitted again, it starts anew"


def test_another_pod_is_not_blamed(tmp_path: Path) -> None:
    round_dir = made(tmp_path)
    for _ in range(2):
        killed(round_dir, "wait()")
    assert ran(round_dir, "end(0, '')", POD_NAME="toy-worker-1", CASPI_STARTS="2")[0] == 0


def test_starts_in_vain() -> None:
    life = Starts("step-000600", running=True)
    killed_once = life.found("step-000600")
    assert (killed_once.in_vain, killed_once.running) == (1, False)
    assert life.found("step-000700") == Starts("step-000700"), "a newer checkpoint forgives all"
    assert killed_once.found("step-000600") == killed_once, "it was not started since"
    clean = Starts("step-000600", 1, running=True).ended("step-000600", "asked to stop", badly=False)
    assert (clean.in_vain, clean.running) == (1, False)
    crashed = clean.ended("step-000600", "rank 1 was killed: out of memory (limit 1 GiB)", badly=True)
    ended = crashed.spent(2, "pod")
    assert crashed.spent(3, "pod") is None and ended is not None and ended.code == 4
    assert "2 times since the checkpoint of step 600 to no avail; at last: rank 1 was killed: out of" in ended.line
    assert Starts(in_vain=5).spent(5, "pod") is not None


@pytest.mark.parametrize("text", ["", "{", '{"other": 1}', "[]", "null"])
def test_a_torn_file_of_starts_is_none(text: str, tmp_path: Path) -> None:
    write_text(tmp_path / "x.json", text)
    assert read_starts(tmp_path / "x.json") == Starts()


def test_nodes_that_only_lose_each_other() -> None:
    """Ends after so many in a row, not when nodes come one by one, not when checkpoints are written in between."""
    lost, losses = Ended(75, "lost another"), Losses()
    for nodes in range(1, 2 * FRUITLESS):
        assert losses.judged(lost, nodes, "step-000600") == lost, "nodes come one by one"
    for life in range(FRUITLESS - 2):
        assert losses.judged(lost, 2 + life % 2, "step-000600") == lost
    ended = losses.judged(lost, 2, "step-000600")
    assert losses.too_many and ended.code == 69
    assert ended.line.startswith("nodes were lost 20 times in a row before a new checkpoint (the last: step-000600)")
    losses = Losses()
    for life in range(5 * FRUITLESS):
        assert losses.judged(lost, 2, f"step-{life // 3}") == lost, "it gets on"
    losses = Losses()
    for life in range(5 * FRUITLESS):
        assert losses.judged(Ended(137 if life % 3 else 75), 2, "").code != 69, "a crash counts for itself"


# --- memory


VERSION_2 = ("memory.events", "low 0\noom 3\noom_kill {kills}\n", "memory.max", "memory.peak")
VERSION_1 = (
    "memory/memory.oom_control",
    "oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    "memory/memory.limit_in_bytes",
    "memory/memory.max_usage_in_bytes",
)


@pytest.mark.parametrize("version", [VERSION_1, VERSION_2], ids=["v1", "v2"])
def test_the_counters_of_a_control_group(version: tuple[str, str, str, str], tmp_path: Path) -> None:
    events, text, limit, most = version
    write_text(tmp_path / events, text.format(kills=2))
    assert memory(tmp_path) == Memory(2, None, None), "older kernels have no peak"
    write_text(tmp_path / limit, f"{96 * 2**30}\n")
    write_text(tmp_path / most, f"{int(95.8 * 2**30)}\n")
    before = memory(tmp_path)
    write_text(tmp_path / events, text.format(kills=3))
    assert out_of_memory(before, memory(tmp_path)).startswith(
        "(limit 96.00 GiB, at most 95.80 GiB used); raise workers.resources.memory"
    )
    assert out_of_memory(memory(tmp_path), memory(tmp_path)) == "", "killed by somebody else"
    for unlimited in ("max\n", "9223372036854771712\n"):
        write_text(tmp_path / limit, unlimited)
        assert out_of_memory(before, memory(tmp_path)).startswith("(at most 95.80 GiB used); ")


def test_no_control_group(tmp_path: Path) -> None:
    assert memory(tmp_path) is None
    assert out_of_memory(None, None) == ""
    assert out_of_memory(Memory(0, None, None), Memory(1, None, None)).startswith("of the node; raise")


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("os.kill(os.getpid(), 9)", "rank 0 was killed: out of memory (limit 1.00 GiB, at most 0.99 GiB used); raise"),
        ("sys.exit(1)", "a process of rank 0 was killed: out of memory (limit 1.00 GiB"),
        ("end(5, 'diverged')", "diverged"),
    ],
)
def test_a_rank_that_runs_out_of_memory(what: str, line: str, tmp_path: Path) -> None:
    """The rank raises the counter itself, as the kernel would."""
    group = tmp_path / "cgroup"
    write_text(group / "memory.events", "oom_kill 0\n")
    write_text(group / "memory.max", f"{2**30}\n")
    write_text(group / "memory.peak", f"{int(0.99 * 2**30)}\n")
    counters = f"import caspi.execution.cgroup as c; c.memory.__defaults__ = (Path({str(group)!r}),)"
    patched = POD.replace("worker.run_worker(", f"{counters}\nworker.run_worker(")
    rank = f"Path({str(group / 'memory.events')!r}).write_text('oom_kill 1\\n')\n{what}"
    code, said = ran(made(tmp_path), rank, program=patched, PET_MAX_RESTARTS="0")
    assert line in said
    assert code < 128, "a new pod has the same limit"


# --- what is said


LINES = [
    {
        "kind": "train",
        "step": 599,
        "steps": 1320,
        "loss": 1.5,
        "grad_norm": 2.0,
        "rates": {"all": 1e-4},
        "seconds": 50.0,
    },
    {
        "kind": "train",
        "step": 600,
        "steps": 1320,
        "loss": 0.8312,
        "grad_norm": 1.25,
        "rates": {"encoder": 1e-5, "decoder": 2e-4},
        "utterances_per_second": 41.5,
        "seconds": 360.0,
    },
    {"kind": "warning", "step": 600, "name": "stuck WER", "message": "..."},
    {"kind": "dev", "step": 600, "wer": 0.31, "cer": 0.1, "loss": 0.9, "seconds": 361.0},
    {"kind": "forecast", "step": 600, "seconds": 361.0, "total_seconds": 800.0, "cost": 3.5, "currency": "USD"},
]


def test_heartbeats_in_the_log_and_the_copy(tmp_path: Path) -> None:
    """A line for each checkpoint, at once; and the same in the copy."""
    write = f"metrics = (folder / 'metrics.jsonl').open('a'); metrics.write({lines(LINES)!r}); metrics.flush()\n"
    rank = (
        f"{write}checkpoint(600)\nprint('from stdout', flush=True)\ntime.sleep(0.7)\ncheckpoint(601)\ntime.sleep(0.7)"
    )
    round_dir = made(tmp_path)
    code, said = ran(round_dir, rank)
    assert code == 0
    beats = [beat for line in said.splitlines() if (beat := parse_heartbeat(line))]
    assert [(beat.step, beat.steps, beat.loss, beat.checkpoint) for beat in beats] == [
        (600, 1320, 0.8312, 600),
        (600, 1320, 0.8312, 601),
    ]
    copy = (round_dir.folder("train") / "logs" / "toy-worker-0.log").read_text()
    assert copy == said and "from stdout\n" in copy and copy.startswith("toy-worker-0: started at ")
    assert "\r" not in said and "\x1b" not in said


def test_a_pod_that_does_not_lead_has_no_heartbeat(tmp_path: Path) -> None:
    write_text(made(tmp_path).folder("train") / "metrics.jsonl", lines(LINES))
    membership = Membership(World("x", 1, 2, 8, "host", 1))
    assert not membership.leads
    names = {family.name for family in PodMetrics("toy", membership, None, lambda: standing(tmp_path)).collect()}
    assert names == {"caspi_nodes", "caspi_world_size", "caspi_restarts"}


def test_metrics_are_those_of_the_documentation(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    write_text(folder / "metrics.jsonl", lines(LINES))
    write_text(folder / "checkpoints/step-000600/checkpoint.json", "{}")
    write_text(folder / "latest", "step-000600\n")
    membership = Membership(World("x", 0, 2, 8, "host", 1))
    membership.restarts["crash"] += 2
    port = free_port()
    stop = export(
        PodMetrics("toy", membership, HourlyPrice(amount=2.0, currency="USD"), lambda: standing(folder)), port
    )
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        stop()
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples]
    found = {sample.name: {*sample.labels} - {"round"} for sample in samples}
    kinds = {sample.name: family.type for family in families for sample in family.samples}
    table = (Path(__file__).parents[1] / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(caspi_\w+)` \| (\w+) \|([^|]*)\|", table, re.M)
    assert found == {name: set(re.findall(r"`(\w+)`", labels)) for name, _, labels in rows}
    assert kinds == {name: kind for name, kind, _ in rows}
    assert all(sample.labels["round"] == "toy" for sample in samples)
    values = {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}
    assert values["caspi_train_step", "toy"] == 600 and values["caspi_train_steps", "toy"] == 1320
    assert values["caspi_world_size", "toy"] == 16 and values["caspi_restarts_total", "crash", "toy"] == 2
    assert values["caspi_train_cost_total", "USD", "toy"] == pytest.approx(361 / 3600 * 16 * 2.0)
    assert values["caspi_train_learning_rate", "decoder", "toy"] == 2e-4
    assert values["caspi_warnings_total", "stuck WER", "toy"] == 1
    assert values["caspi_dev_wer", "toy"] == 0.31


def test_metrics_of_a_pod_while_it_trains(tmp_path: Path) -> None:
    port, round_dir = free_port(), made(tmp_path)
    with started(round_dir, "wait()", CASPI_METRICS_PORT=str(port)) as pod:
        until((round_dir.folder("train") / "ready-0").exists, pod)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert 'caspi_nodes{round="tidy"} 1.0' in answer.read().decode()


def test_a_port_that_is_taken_does_not_stop_training(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said = ran(made(tmp_path), "end(0, '')", CASPI_METRICS_PORT=port)
    assert code == 0 and f"warning: no metrics on port {port} (" in said


# --- the copy of the log


def test_the_copy_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "pod.log"
    copied(path, [f"line {number:05d}\n" for number in range(50_000)], most=200_000, linger=50.0)
    both = path.with_name("pod.log.1").read_text() + path.read_text()
    assert path.stat().st_size <= 200_000 and 100_000 < path.with_name("pod.log.1").stat().st_size <= 200_000
    assert both.endswith("line 49999\n") and both == "".join(f"line {n:05d}\n" for n in range(50_000))[-len(both) :]


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "full.log").symlink_to("/dev/full")
    said = copied(tmp_path / "full.log", [f"line {number}\n" for number in range(20)])
    assert said.count("is not a full copy of this log") == 1 and "No space left on device" in said
    assert all(f"line {number}\n" in said for number in range(20)), "the log itself is whole"


def test_a_disk_that_hangs_delays_nothing(tmp_path: Path) -> None:
    """A named pipe that nobody reads: it can't even be opened."""
    os.mkfifo(tmp_path / "hang.log")
    began = time.monotonic()
    said = copied(tmp_path / "hang.log", [f"line {number}\n" for number in range(3000)], linger=0.2)
    assert "line 2999\n" in said and time.monotonic() - began < 20


# --- what the tests are made of


def made(folder: Path) -> RoundDir:
    return create(folder, parse(GOOD, RoundSpec, "good"), ClusterSpec(), folder)


def recorded(round_dir: RoundDir, status: str, spec: str | None = None) -> None:
    circumstances = Circumstances(started="2026-11-21T15:00:00+00:00", seconds=1.0, host="x", git=None, versions={})
    values: dict[str, Any] = {"stage": "train", "status": status, "round": "tidy", "seed": 1, "inputs": {}}
    record = Record(**values, spec=spec or round_dir.spec.digest, circumstances=circumstances)
    write_record(round_dir.folder("train") / "record.json", record)


def lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


@contextmanager
def started(round_dir: RoundDir, rank: str, program: str = POD, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A pod whose training processes run `rank`."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PET_")},
        "OMP_NUM_THREADS": "1",
        "POD_NAME": "toy-worker-0",
        "CASPI_TERMINATION_LOG": str(round_dir.path.parent / "termination"),
        **more,
    }
    command = [sys.executable, "-c", program, str(round_dir.path), RANK + rank]
    pod = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        yield pod
    finally:
        pod.kill()
        pod.communicate()


def ran(round_dir: RoundDir, rank: str, program: str = POD, **more: str) -> tuple[int, str]:
    """Its exit code, and all that it said."""
    with started(round_dir, rank, program, **more) as pod:
        _, said = pod.communicate(timeout=PATIENCE)
    return pod.returncode, said.decode()


def killed(round_dir: RoundDir, rank: str, starts: str = "2") -> None:
    """A pod that is killed while it trains."""
    ready = round_dir.folder("train") / "ready-0"
    ready.unlink(missing_ok=True)
    with started(round_dir, rank, CASPI_STARTS=starts) as pod:
        until(ready.exists, pod)


@contextmanager
def process_1(program: str, argument: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """A program that is the first of its pid namespace; and a function that gives its pid out here."""
    command = ["unshare", "--pid", "--fork", "--kill-child", *options, sys.executable, "-c", program, argument]
    outside = subprocess.Popen(command)

    def inside() -> int:
        return int(Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()[0])

    try:
        yield outside, inside
    finally:
        outside.kill()
        outside.wait()


def copied(path: Path, what: list[str], most: int = 10**9, linger: float = 5.0) -> str:
    """What the log gets of what is printed while it is copied to `path`."""
    program = (
        "import sys, json; from pathlib import Path; from caspi.execution.log_copy import LogCopy\n"
        "log = LogCopy(Path(sys.argv[1]), int(sys.argv[2])); log.open()\n"
        "for line in json.load(sys.stdin): print(line, end='', flush=True)\n"
        "log.close(float(sys.argv[3]))"
    )
    command = [sys.executable, "-c", program, str(path), str(most), str(linger)]
    done = subprocess.run(command, input=json.dumps(what), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stderr


def until(there: Any, pod: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline and pod.poll() is None
        time.sleep(0.02)
