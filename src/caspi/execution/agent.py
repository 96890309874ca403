"""The agent of a node: starts the training processes there, watches them, and ends with their exit code.

    caspi stage train --round-dir D                                           one node, as its cluster file says
    caspi stage train --round-dir D --nnodes 1:3 --rdzv-endpoint HOST:PORT    one of up to three nodes

torchrun does the same and tells a batch system nothing: whatever happened, it ends with 1. This one ends with the code
of docs/exit-codes.md and one line. What another run would meet again (bad input, a refusal, a failure, divergence, the
budget) ends the work on all nodes. A crash or a hang is begun again, `max_restarts` times. A node that comes or goes
costs none of these: the training processes end, and the nodes that are there go on from the last checkpoint. A node
whose processes are done waits for the others: a batch system may end all as soon as one has succeeded.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Protocol, TypeVar

from caspi.errors import Diverged, GateRefused, OutOfBudget, Preempted, StageFailed, Unanswered, UserError
from caspi.execution.losses import Losses
from caspi.execution.surroundings import Surroundings
from caspi.launched import Ended, World, last_words
from caspi.orphans import bury_orphans

T = TypeVar("T")

FINAL = tuple(error.exit_code for error in (UserError, GateRefused, StageFailed, Diverged, OutOfBudget))
RETRY = Preempted.exit_code
DEFAULTS = {
    "OMP_NUM_THREADS": "1",  # more threads for each process make all of them slower
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # torch warns with a page of C++ frames when a node is lost
}
POLL_SECONDS = 0.1
SETTLE_SECONDS = 5.0  # when one process has failed, the others get this long to end by themselves
GRACE_SECONDS = 240.0  # to finish a step and write a checkpoint; below terminationGracePeriodSeconds of a pod


class Meeting(Protocol):
    """Where nodes find each other."""

    def join(self) -> World | Ended:
        """Wait for a world to be part of; or how the work ended, when it has."""

    def changed(self) -> bool:
        """Whether the world is no longer what it was: a node waits to join, or the meeting place is gone."""

    def lost(self) -> bool:
        """Whether a node of the world has fallen silent: no exchange with it will ever end. Ask all the time: it also
        tells the others that this node is alive."""

    def end(self, ended: Ended) -> Ended | None:
        """Tell the other nodes that all work has ended, and how; the first to say it is believed by all.

        Success is said when all have come to it. None: they can't, because one of them is gone.
        """


@dataclass(frozen=True, slots=True)
class Alone:
    """One node: nobody to meet."""

    name: str
    processes: int

    def join(self) -> World:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        return World(self.name, 0, 1, self.processes, "127.0.0.1", port)

    def changed(self) -> bool:
        return False

    def lost(self) -> bool:
        return False

    def end(self, ended: Ended) -> Ended:
        return ended


@dataclass(slots=True)
class Asked:
    """Whether somebody asked this agent to stop (SIGTERM, Ctrl-C)."""

    times: int = 0
    waiting: bool = False
    """Nothing runs yet: stop at once."""


class _Stop(Exception):
    pass


def run_agent(
    command: Sequence[str],
    meeting: Meeting,
    max_restarts: int,
    grace: float | None = None,
    around: Surroundings | None = None,
) -> Ended:
    """Run `command` as training processes until the work has ended; says how. Call it from the main thread."""
    grace = grace or float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE_SECONDS))
    around, restarts, losses = around or Surroundings(), 0, Losses()
    with _listening() as asked:
        while True:
            world = _while_waiting(asked, meeting.join)
            if not isinstance(world, World):
                return world
            if world.nodes > 1:
                _say(f"{world.size} training processes on {world.nodes} nodes; this is node {world.node}")
            ended = _run(command, world, meeting, asked, grace, around)
            if asked.times and ended.code not in (0, *FINAL):
                return ended
            ended = losses.judged(ended, world.nodes, around.stands_at())
            if ended.code in (0, *FINAL) or losses.too_many or (ended.code != RETRY and restarts == max_restarts):
                said = _while_waiting(asked, partial(meeting.end, ended))
                if said is not None:
                    return said
                if ended.code != 0 or around.done():
                    return ended
                ended = Ended(RETRY)  # a node was lost before the work was recorded
            if ended.code != RETRY:
                restarts += 1
                _say(f"{ended.line}; restart {restarts} of {max_restarts}")
            around.begins_again({RETRY: "membership", Unanswered.exit_code: "hang"}.get(ended.code, "crash"))


def _while_waiting(asked: Asked, wait: Callable[[], T]) -> T | Ended:
    """Nothing is lost when the wait is: whoever asks to stop now is heard at once."""
    try:
        asked.waiting = True
        if asked.times:
            raise _Stop
        return wait()
    except _Stop:
        return Ended(RETRY, "asked to stop while no training process ran; run the same command to go on")
    finally:
        asked.waiting = False


def _run(
    command: Sequence[str], world: World, meeting: Meeting, asked: Asked, grace: float, around: Surroundings
) -> Ended:
    """One life of this node's training processes."""
    around.begins(world)
    with tempfile.TemporaryDirectory(prefix="caspi-") as folder, _started(command, world, Path(folder)) as workers:
        patience: float | None = None
        while workers.running() and not workers.failed():
            time.sleep(POLL_SECONDS)
            if meeting.lost():
                return Ended(RETRY, "a node is silent; going on with the others from the last checkpoint")
            if patience is None and (asked.times or meeting.changed() or around.due()):
                workers.ask_to_stop()
                patience = time.monotonic() + grace
            if patience is not None and (time.monotonic() > patience or asked.times > 1):
                break
        workers.settle()
        ended = workers.ended(around.out_of_memory())
    return ended if ended.code in (0, *FINAL) else around.due() or ended


@dataclass(slots=True)
class Workers:
    """The training processes of this node."""

    world: World
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    asked: bool = False
    given_up: set[int] = field(default_factory=set)
    """Killed by us."""

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def failed(self) -> bool:
        return any(process.poll() for process in self.processes)

    def ask_to_stop(self) -> None:
        """They save a checkpoint and end. Once only: a second signal would end them at once."""
        self.asked = True
        for process in self.processes:
            process.terminate()

    def settle(self) -> None:
        """Where one has failed, the others can't go on: most notice by themselves, and their reasons count too."""
        until = time.monotonic() + (SETTLE_SECONDS if self.failed() else 0.0)
        while self.running() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        for local, process in enumerate(self.processes):
            if process.poll() is None:
                self.given_up.add(local)
                process.kill()
                process.wait()

    def ended(self, out_of_memory: str = "") -> Ended:
        """The end that explains the others: a rank that fails breaks the exchange of all."""
        codes = {local: _exit_code(process.returncode) for local, process in enumerate(self.processes)}
        own = {local: code for local, code in codes.items() if local not in self.given_up}
        if self.asked:
            stopped = 128 + signal.SIGTERM  # before it listened for the signal: there was nothing to save
            own = {local: RETRY if code == stopped else code for local, code in own.items()}
        if not own:
            return Ended(
                128 + signal.SIGKILL, "no training process ended in time, all were killed; the last checkpoint is whole"
            )
        local = decisive(own)
        code = own[local]
        words = last_words(self.folder / str(local))
        return Ended(code, words or _obituary(self.world.rank(local), code, out_of_memory))


def decisive(codes: Mapping[int, int]) -> int:
    """Which process says how the work ended: what is final first, then crashes, then those that only noticed."""

    def weight(local: int) -> tuple[int, int]:
        code = codes[local]
        order = (code in FINAL, code not in (0, RETRY, Unanswered.exit_code), code == Unanswered.exit_code, code != 0)
        return (order.index(True) if True in order else len(order), local)

    return min(codes, key=weight)


@contextmanager
def _started(command: Sequence[str], world: World, folder: Path) -> Iterator[Workers]:
    workers = Workers(world, folder)
    try:
        for local in range(world.processes):
            environment = {**DEFAULTS, **os.environ, **world.environment(local, folder / str(local))}
            # a session of its own: a signal to the group of the agent reaches it once, by the agent
            workers.processes.append(subprocess.Popen(list(command), env=environment, start_new_session=True))
        yield workers
    finally:
        workers.kill()
        bury_orphans()


@contextmanager
def _listening() -> Iterator[Asked]:
    asked = Asked()

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.times += 1
        if asked.waiting:
            raise _Stop

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _exit_code(code: int) -> int:
    """As a shell says it: 128 + the number of the signal."""
    return code if code >= 0 else 128 - code


def _obituary(rank: int, code: int, out_of_memory: str) -> str:
    """For a process that could not say it itself."""
    if code == 0:
        return ""
    if out_of_memory and code in (1, 128 + signal.SIGKILL):
        whose = f"rank {rank}" if code > 1 else f"a process of rank {rank}"
        return f"{whose} was killed: out of memory {out_of_memory}"
    if code == 128 + signal.SIGKILL:
        return f"rank {rank} was killed (SIGKILL): out of memory, or from outside"
    if code > 128:
        return f"rank {rank} was killed by signal {code - 128}"
    if code == RETRY:
        return "asked to stop before the first step; run the same command to go on"
    return f"rank {rank} ended with exit code {code}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
