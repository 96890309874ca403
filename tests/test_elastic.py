"""Elastic training: real agents as separate processes, killed, joined, asked to stop; and what their exit codes say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import caspi.execution.agent as agent_module
import caspi.training.data as data_module
from caspi.errors import Preempted, Unanswered, UserError
from caspi.execution.agent import Alone, Meeting, run_agent
from caspi.execution.nodes import meeting_for
from caspi.launched import Ended
from caspi.records.round_dir import create
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.training.attendance import Watch
from caspi.training.checkpoint import newest_checkpoint
from caspi.training.engine import Run
from tests.elastic_work import EPOCHS, STEPS, TRAIN
from tests.ranks import free_port
from tests.test_bad_input import GOOD
from tests.toy_family import ToyFamily
from tests.training_work import WORDS, spec_of, trained_by, work_in

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
CASPI = Path(sys.executable).parent / "caspi"
DEAR = {"gpus_per_node": 1, "gpu": {"product": "X", "memory": "1GiB", "price": "1000000 USD/h"}}
PATIENCE = 150.0  # a training process needs 9 s of a processor before its first step, most of it to import torch

Agent = subprocess.Popen[bytes]
Curve = Mapping[int, tuple[float, int, int]]


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """What one process does without any interruption."""
    folder = tmp_path_factory.mktemp("whole")
    trained_by(work_in(folder, spec=spec_of(**TRAIN)))
    return curve_of(folder)


# --- nodes come and go


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_is_lost_one_joins_the_first_is_lost(curve: Curve, tmp_path: Path) -> None:
    """kill -9 of a follower, an agent more, kill -9 of the one that offers the meeting place: the same curve."""
    prepare(tmp_path)
    port, slow = free_port(), {"seconds": 0.015}
    place = ("1:3", f"127.0.0.1:{port}")
    with (
        started(tmp_path, slow, *place) as host,
        started(tmp_path, {**slow, "wait": "follow"}, *place) as follower,
        started(tmp_path, {**slow, "wait": "join"}, *place) as late,
    ):
        until(lambda: listens(port), host)
        (tmp_path / "follow").touch()
        until(lambda: step(tmp_path) >= 6, host, follower)
        seconds = [lost(follower, tmp_path, host)]
        until_step_from_now(8, tmp_path, host)
        (tmp_path / "join").touch()
        until(lambda: len(lives(tmp_path)) >= 5, host, late)
        until_step_from_now(8, tmp_path, host, late)
        seconds.append(lost(host, tmp_path, late))
        assert late.wait(PATIENCE) == 0
        assert late.stderr is not None
        said = late.stderr.read().decode()
    print(f"kill -9 to the next step: follower {seconds[0]:.1f} s, the one that offers the place {seconds[1]:.1f} s")
    begun = lives(tmp_path)
    assert [size for size, _ in begun] == [2, 2, 1, 2, 2, 1]
    starts = [at for _, at in begun]
    assert starts[2] >= 4 and starts[2] + 8 <= starts[3] and starts[4] + 4 <= starts[5], "from the last checkpoint"
    assert_same(curve_of(tmp_path), curve)
    assert "2 training processes on 2 nodes; this is node" in said and "Traceback" not in said and "frame #" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("act", "rank"), [("hang", 1), ("freeze", 0)])
def test_a_rank_that_hangs_is_named(act: str, rank: int, tmp_path: Path) -> None:
    """Stuck in a read; or stopped altogether, with the table of who has come in its memory."""
    found = run(tmp_path, {"act": act, "rank": rank, "hang_timeout": 4, "restarts": 0})
    assert found.code == Unanswered.exit_code == 69
    assert f"\nrank {rank} has not answered for 4 s while the others waited; the last checkpoint is whole" in found.said
    assert newest_checkpoint(tmp_path / "train/checkpoints", "test"), "whole"
    assert [size for size, _ in lives(tmp_path)] == [2, 2]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_that_is_cut_off_is_not_waited_for(curve: Curve, tmp_path: Path) -> None:
    """A machine that is off ends no connection: its agent and its training processes are stopped, not killed."""
    prepare(tmp_path)
    port, slow = free_port(), {"seconds": 0.015, "hang_timeout": 300}
    place = ("1:2", f"127.0.0.1:{port}")
    with (
        started(tmp_path, slow, *place) as host,
        started(tmp_path, {**slow, "wait": "follow"}, *place) as follower,
    ):
        until(lambda: listens(port), host)
        (tmp_path / "follow").touch()
        until(lambda: step(tmp_path) >= 6 and len(lives(tmp_path)) >= 2, host, follower)
        for pid in [*children(follower.pid), follower.pid]:
            os.kill(pid, signal.SIGSTOP)
        begun, before = time.monotonic(), len(lives(tmp_path))
        until(lambda: len(lives(tmp_path)) > before and step(tmp_path) > lives(tmp_path)[-1][1], host)
        seconds = time.monotonic() - begun
        follower.kill()  # the machine comes back too late
        assert host.wait(PATIENCE) == 0
    print(f"silent to the next step of the other: {seconds:.1f} s")
    assert seconds < 60, "long before the rank is found to hang"
    assert_same(curve_of(tmp_path), curve)


# --- what the agent says, with real training processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        ({"train": {"stop": {"wer_above": 0.01}}}, 5, "is above train.stop.wer_above = 0.01"),
        ({"train": {"stop": {"cost": "1 USD"}}, "cluster": DEAR}, 6, "train.stop.cost is 1.00 USD"),
    ],
)
def test_what_a_retry_would_meet_again_ends_it(options: dict[str, Any], code: int, line: str, tmp_path: Path) -> None:
    found = run(tmp_path, options)
    assert found.code == code
    *before, last = found.said.splitlines()
    assert line in last and not any(line in other for other in before), "one line, once"
    assert "Traceback" not in found.said and "FAILED" not in found.said
    assert [size for size, _ in lives(tmp_path)] == [2, 2], "no restart"


@pytest.mark.slow
def test_preempted_it_saves_and_the_same_command_goes_on(curve: Curve, tmp_path: Path) -> None:
    prepare(tmp_path)
    with started(tmp_path, {"processes": 2, "seconds": 0.01}) as agent:
        until(lambda: step(tmp_path) >= 6, agent)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(PATIENCE) == Preempted.exit_code == 75
        assert agent.stderr is not None
        said = agent.stderr.read().decode().splitlines()
    assert said[-1].startswith("asked to stop: step") and sum("asked to stop" in line for line in said) == 1
    at = step(tmp_path)
    assert (tmp_path / "train/latest").read_text() == f"step-{at:06d}\n"
    assert run(tmp_path, {}).code == 0
    assert lives(tmp_path)[2:] == [(2, at), (2, at)]
    assert_same(curve_of(tmp_path), curve)


@pytest.mark.slow
def test_one_line_from_the_command_line(tmp_path: Path) -> None:
    """`caspi stage train` on two processes; under plain torchrun the line is in torchrun's page."""
    spec = parse(GOOD, RoundSpec, "good")
    round_dir = create(tmp_path, spec, ClusterSpec(processes_per_node=2), tmp_path)
    done = subprocess.run([CASPI, "stage", "train", "--round-dir", round_dir.path], capture_output=True, text=True)
    line = f"{round_dir.path}: stage export has not run; run `caspi stage export --round-dir {round_dir.path}`"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line + "\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module"]
    missing = tmp_path / "typo"
    done = subprocess.run(
        [*torchrun, "caspi", "stage", "train", "--round-dir", missing], capture_output=True, text=True
    )
    assert done.returncode == 1, "torchrun's own; hence our agent"
    assert f"{missing}: no round directory: it has no round.yaml" in done.stderr
    assert "exitcode  : 2" in done.stderr


# --- what the agent decides, with processes that only end


WORKER = """
import os, signal, sys, time
from caspi.launched import tell_agent
rank, folder = int(os.environ["RANK"]), sys.argv[1]
with open(folder + "/begun", "a") as begun:
    begun.write(f"{rank}\\n")
life = open(folder + "/begun").read().split().count(str(rank))
what = eval(sys.argv[2])
what = what[rank] if isinstance(what, dict) else what
what = what[min(life, len(what)) - 1] if isinstance(what, list) else what
if what == "save":
    signal.signal(signal.SIGTERM, lambda *_: tell_agent(f"rank {rank} saved") and os._exit(75))
if what == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if isinstance(what, str):
    open(f"{folder}/ready-{rank}", "w").close()
    time.sleep(60)
if isinstance(what, tuple):
    with open(f"{folder}/agent-{rank}", "w") as agent:
        agent.write(f"{os.getppid()} ")
    time.sleep(what[0])
    open(f"{folder}/finished-{rank}", "w").close()
    what = what[1]
if what < 0:
    os.kill(os.getpid(), -what)
tell_agent(f"rank {rank} says {what}")
sys.exit(what)
"""


@pytest.mark.parametrize(
    ("what", "restarts", "code", "line", "begun"),
    [
        (0, 3, 0, "rank 0 says 0", 2),
        (2, 3, 2, "rank 0 says 2", 2),
        (3, 3, 3, "rank 0 says 3", 2),
        (4, 3, 4, "rank 0 says 4", 2),
        (5, 3, 5, "rank 0 says 5", 2),
        (6, 3, 6, "rank 0 says 6", 2),
        ({0: 75, 1: 4}, 3, 4, "rank 1 says 4", 2),  # the leader only noticed
        ({0: "stuck", 1: 2}, 3, 2, "rank 1 says 2", 2),
        ({0: 75, 1: -9}, 2, 137, "rank 1 was killed (SIGKILL): out of memory, or from outside", 6),
        ({0: -11, 1: 75}, 0, 139, "rank 0 was killed by signal 11", 2),
        ({0: 75, 1: 1}, 1, 1, "rank 1 says 1", 4),
        ([-9, 0], 3, 0, "rank 0 says 0", 4),
        ([1, 0], 0, 1, "rank 0 says 1", 2),
        ({0: 69, 1: "ignore"}, 1, 69, "rank 0 says 69", 4),
        ([75, 75, 0], 0, 0, "rank 0 says 0", 6),  # a change of membership costs no restart
    ],
)
def test_exit_codes(
    what: Any, restarts: int, code: int, line: str, begun: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "SETTLE_SECONDS", 0.5)
    ended = run_agent(light(tmp_path, what), Alone("x", 2), restarts)
    assert (ended.code, ended.line) == (code, line)
    assert len((tmp_path / "begun").read_text().split()) == begun


@pytest.mark.parametrize(
    ("what", "signals", "code", "line"),
    [
        ("save", 1, 75, "rank 0 saved"),
        ("deaf", 1, 75, "asked to stop before the first step; run the same command to go on"),
        ("ignore", 1, 137, "no training process ended in time, all were killed; the last checkpoint is whole"),
        ("ignore", 2, 137, "no training process ended in time, all were killed; the last checkpoint is whole"),
    ],
)
def test_asked_to_stop(what: str, signals: int, code: int, line: str, tmp_path: Path) -> None:
    def ask() -> None:
        while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
            time.sleep(0.02)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)

    threading.Thread(target=ask, daemon=True).start()
    ended = run_agent(light(tmp_path, what), Alone("x", 2), 3, grace=1.0 if signals == 1 else 60.0)
    assert (ended.code, ended.line) == (code, line)
    assert len((tmp_path / "begun").read_text().split()) == 2, "no restart"


MEETING = """
import json, sys
from caspi.execution.agent import run_agent
from caspi.execution.nodes import meeting_for
from caspi.spec import ClusterSpec
ended = run_agent(sys.argv[2:], meeting_for(ClusterSpec(), "2:3", None, sys.argv[1], "x", None), 0)
print(json.dumps([ended.code, ended.line]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "ended"),
    [
        ({0: 75, 1: 4}, [4, "rank 1 says 4"]),
        ({0: 75, 1: [75, -9]}, [137, "rank 1 was killed (SIGKILL): out of memory, or from outside"]),
    ],
)
def test_all_nodes_end_as_the_one_that_knows_why(what: Any, ended: Any, tmp_path: Path) -> None:
    """Whichever of the two offers the meeting place."""
    place = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", MEETING, place, *light(tmp_path, what)]
    agents = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        assert [json.loads(agent.communicate(timeout=PATIENCE)[0]) for agent in agents] == [ended, ended]
    finally:
        for agent in agents:
            agent.kill()


BARRIER = """
import json, os, sys
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
from pathlib import Path
import caspi.training.rendezvous as rendezvous
from caspi.execution.agent import run_agent
from caspi.execution.nodes import meeting_for
from caspi.execution.surroundings import Surroundings
from caspi.spec import ClusterSpec
rendezvous.SILENT_SECONDS = 2.0
class Recorded(Surroundings):
    def done(self):
        return Path(sys.argv[2]).exists()
ended = run_agent(
    sys.argv[3:], meeting_for(ClusterSpec(), "2:3", None, sys.argv[1], "x", None), 0, around=Recorded()
)
print(json.dumps([ended.code, ended.line]))
"""


@pytest.mark.slow
def test_a_node_that_is_done_waits_for_the_others(tmp_path: Path) -> None:
    """The leader may still write its record: nobody leaves before."""
    with at_the_barrier(tmp_path, {0: (5, 0), 1: 0}, 2) as agents:
        until(lambda: any(agent.poll() is not None for agent in agents))
        assert (tmp_path / "finished-0").exists()
        for agent in agents:
            out, _ = agent.communicate(timeout=PATIENCE)
            assert json.loads(out)[0] == 0


@pytest.mark.slow
def test_who_says_otherwise_while_one_waits_is_believed(tmp_path: Path) -> None:
    with at_the_barrier(tmp_path, {0: (3, 4), 1: 0}, 2) as agents:
        for agent in agents:
            assert json.loads(agent.communicate(timeout=PATIENCE)[0]) == [4, "rank 0 says 4"]


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False])
def test_a_node_is_lost_while_another_waits_for_it(recorded: bool, tmp_path: Path) -> None:
    """With the record written that is no matter; without, the work is done again with the node that comes instead."""
    with at_the_barrier(tmp_path, {0: [(60, 0), 0], 1: 0}, 2) as agents:
        until(lambda: pid_of_agent(tmp_path) > 0, *agents)
        time.sleep(1.0)  # rank 1 is done, and its agent waits
        if recorded:
            (tmp_path / "record").touch()
        (lost,) = [agent for agent in agents if agent.pid == pid_of_agent(tmp_path)]
        (kept,) = [agent for agent in agents if agent is not lost]
        assert kept.poll() is None, "it waits"
        lost.kill()
        if recorded:
            assert json.loads(kept.communicate(timeout=PATIENCE)[0]) == [0, "rank 1 says 0"]
            return
        with at_the_barrier(tmp_path, {0: [(60, 0), 0], 1: 0}, 1, agents[0].args[3]) as others:  # type: ignore[index]
            for agent in (kept, *others):
                assert json.loads(agent.communicate(timeout=PATIENCE)[0])[0] == 0
    assert len((tmp_path / "begun").read_text().split()) == 4, "both did it again"


def test_a_killed_agent_takes_its_processes_along(tmp_path: Path) -> None:
    program = (
        "import sys; from caspi.execution.agent import Alone, run_agent\nrun_agent(sys.argv[1:], Alone('x', 1), 0)"
    )
    worker = "import os, sys, time; from caspi.launched import die_with_agent; die_with_agent()\n"
    worker += "open(sys.argv[1], 'w').close(); time.sleep(60)"
    ready = tmp_path / "ready"
    agent = subprocess.Popen([sys.executable, "-c", program, sys.executable, "-c", worker, str(ready)])
    until(ready.exists, agent)
    agent.kill()
    agent.wait()
    until(lambda: not processes_of(ready))


# --- who has come


def test_who_is_behind_is_named_after_the_limit() -> None:
    watch = Watch(limit=10.0)
    assert watch.missing([0, 0, 0], 0.0) == set()
    assert watch.missing([1, 0, 1], 1.0) == set(), "not yet"
    assert watch.missing([1, 0, 1], 11.5) == {1}
    assert watch.missing([1, 1, 1], 12.0) == set(), "it came after all"
    assert watch.missing([1, 1, 1], 99.0) == set(), "all are busy: a leader that writes, an evaluation"
    assert watch.missing([2, 1, 1], 100.0) == set()
    assert watch.missing([2, 1, 1], 111.0) == {1, 2}


def test_slow_is_not_hanging() -> None:
    """Each step takes nearly the limit, and somebody waits at every look."""
    watch = Watch(limit=10.0)
    assert all(watch.missing([count + 1, count], 9.0 * count) == set() for count in range(20))


def test_without_a_table_it_is_rank_0() -> None:
    watch = Watch(limit=10.0)
    assert watch.missing(None, 0.0) == set()
    assert watch.missing([3, 3], 5.0) == set(), "a moment's outage"
    assert watch.missing(None, 6.0) == set()
    assert watch.missing(None, 16.5) == {0}


# --- where nodes meet


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"nnodes": "3"}, "3 nodes need a place to meet: give --rdzv-endpoint HOST:PORT"),
        ({"nnodes": "1:x"}, '--nnodes 1:x: "x" is no whole number above 0'),
        ({"nnodes": "3:1"}, "--nnodes 3:1: 3 is more than 1"),
        ({"nnodes": "0"}, '"0" is no whole number'),
        ({"nproc": "two"}, '--nproc-per-node two: "two"'),
        ({"nnodes": "2", "endpoint": "node-0"}, "--rdzv-endpoint node-0: write HOST:PORT"),
        ({"nnodes": "2", "endpoint": "a:99999"}, "--rdzv-endpoint a:99999: write HOST:PORT"),
        ({"nnodes": "2", "endpoint": "a:1", "conf": "join=3"}, "--rdzv-conf join=3: not one of join_timeout"),
        ({"nnodes": "2", "endpoint": "a:1", "conf": "is_host=maybe"}, "give a number, or true or false"),
    ],
)
def test_options_that_are_wrong(options: dict[str, str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        meeting_of(**options)
    assert line in str(caught.value)


def test_what_the_cluster_file_says() -> None:
    assert meeting_of() is None, "one process trains by itself"
    assert meeting_of(ClusterSpec(processes_per_node=3)) == Alone("x", 3)
    assert meeting_of(ClusterSpec(processes_per_node=3), nproc="auto") == Alone("x", 3)
    assert meeting_of(nproc="2") == Alone("x", 2)
    with pytest.raises(UserError, match="2 nodes need a place to meet"):
        meeting_of(ClusterSpec(nodes=2))


def test_a_process_that_an_agent_started_starts_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert meeting_of(ClusterSpec(nodes=2, processes_per_node=3)) is None


def test_nobody_there() -> None:
    meeting = meeting_of(
        nnodes="2", endpoint=f"127.0.0.1:{free_port()}", conf="is_host=0,join_timeout=1,read_timeout=1"
    )
    assert meeting is not None
    ended = meeting.join()
    assert isinstance(ended, Ended) and ended.code == 69
    assert "within 1 s" in ended.line and "is the first node up" in ended.line


# --- the comparison above would notice


def test_batches_that_depend_on_the_world_are_seen(
    curve: Curve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: a run that was interrupted, and goes on with an order of its own."""
    spec = spec_of(**{**TRAIN, "evaluate": {"every_steps": 24, "utterances": 20}})
    stopped_at(tmp_path, 20, spec, monkeypatch)
    with monkeypatch.context() as patch:
        real = data_module.epoch_batches
        patch.setattr(data_module, "epoch_batches", lambda seconds, seed, *rest: real(seconds, seed + 2, *rest))
        trained_by(work_in(tmp_path, spec=spec))
    with pytest.raises(AssertionError, match=r"step 21"):
        assert_same(curve_of(tmp_path), curve)


def test_an_interruption_alone_is_not(curve: Curve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_at(tmp_path, 20, spec_of(**TRAIN), monkeypatch)
    trained_by(work_in(tmp_path, spec=spec_of(**TRAIN)))
    assert_same(curve_of(tmp_path), curve)


# --- what the tests are made of


def assert_same(found: Curve, expected: Curve) -> None:
    """Every step once, on the same tokens and utterances, with the same loss."""
    assert list(found) == list(expected) == list(range(1, STEPS + 1))
    for number, (loss, *counted) in expected.items():
        assert found[number][1:] == tuple(counted), f"step {number}"
        assert found[number][0] == pytest.approx(loss, abs=1e-4), f"step {number}"
    assert sum(utterances for _, _, utterances in found.values()) == 60 * EPOCHS


def curve_of(folder: Path) -> Curve:
    """Loss, tokens and utterances of each step."""
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    return {x["step"]: (x["loss"], x["tokens"], x["utterances"]) for x in lines if x["kind"] == "train"}


def lives(folder: Path) -> list[tuple[int, int]]:
    """World size and first step of each training process that was started, in order."""
    path = folder / "lives"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(size), int(begins_at)) for size, _, begins_at in rows]


def step(folder: Path) -> int:
    path = folder / "train/metrics.jsonl"
    return path.read_bytes().count(b'"kind":"train"') if path.exists() else 0


def until(there: Callable[[], bool], *agents: Agent) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline and all(agent.poll() is None for agent in agents)
        time.sleep(0.02)


def until_step_from_now(more: int, folder: Path, *agents: Agent) -> None:
    now = step(folder)
    until(lambda: step(folder) >= now + more, *agents)


def lost(agent: Agent, folder: Path, *others: Agent) -> float:
    """kill -9 an agent, and with it its training processes; seconds until the next step of the others."""
    path = folder / "train/metrics.jsonl"
    before, begun, clock = path.stat().st_ino, len(lives(folder)), time.monotonic()
    agent.kill()
    until(lambda: len(lives(folder)) > begun and path.stat().st_ino != before, *others)
    until(lambda: step(folder) > lives(folder)[-1][1], *others)
    return time.monotonic() - clock


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def prepare(folder: Path) -> None:
    """The base model, before processes that start at once would all make it."""
    ToyFamily().prepare(None, WORDS, spec_of().seed, folder / "base")


@contextmanager
def started(folder: Path, options: Mapping[str, Any], *nodes: str) -> Iterator[Agent]:
    command = [sys.executable, "-m", "tests.elastic_work", str(folder), json.dumps(options), *nodes]
    agent = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)
    try:
        yield agent
    finally:
        agent.kill()  # the kernel ends its training processes
        agent.wait()


@dataclass(frozen=True, slots=True)
class Finished:
    code: int
    said: str


def run(folder: Path, options: Mapping[str, Any]) -> Finished:
    """Two training processes on one node, to their end."""
    prepare(folder)
    with started(folder, {"processes": 2, **options}) as agent:
        _, said = agent.communicate(timeout=PATIENCE)
    return Finished(agent.returncode, said.decode())


def light(folder: Path, what: Any) -> list[str]:
    return [sys.executable, "-c", WORKER, str(folder), repr(what)]


@contextmanager
def at_the_barrier(folder: Path, what: Any, nodes: int, place: str | None = None) -> Iterator[list[Agent]]:
    place = place or f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", BARRIER, place, str(folder / "record"), *light(folder, what)]
    agents = [subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) for _ in range(nodes)]
    try:
        yield agents
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()


def pid_of_agent(folder: Path) -> int:
    """Of the agent of rank 0; 0 before it has started its training process."""
    path = folder / "agent-0"
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith(" ") else 0


def processes_of(argument: Path) -> list[str]:
    """Processes that were started with this argument, zombies aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(argument).encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def meeting_of(
    cluster: ClusterSpec | None = None,
    nnodes: str | None = None,
    nproc: str | None = None,
    endpoint: str | None = None,
    conf: str | None = None,
) -> Meeting | None:
    return meeting_for(cluster or ClusterSpec(), nnodes, nproc, endpoint, "x", conf)


def stopped_at(folder: Path, number: int, spec: RoundSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a step, and stop there as after SIGTERM."""
    real = Run.stop_if_asked

    def ask(run: Run, *arguments: Any) -> None:
        run.asked = run.step == number
        real(run, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(Run, "stop_if_asked", ask)
        trained_by(work_in(folder, spec=spec))
