"""The entrypoint of a training pod: the agent of `caspi stage train`, and what only a pod needs.

Kubernetes restarts what ends, deletes what is left over, and keeps little of what was said. So this owns when to stop
trying (a deadline, a budget of starts), the exit code that the training operator understands (docs/worker.md), the last
message in the pod's status, a copy of the log on the round's disk, heartbeats, and metrics.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import NoReturn

from caspi.errors import Preempted, StageFailed, Unanswered, UserError
from caspi.execution import last_message
from caspi.execution.agent import Alone, run_agent
from caspi.execution.cgroup import Memory, memory, out_of_memory
from caspi.execution.exporter import Membership, PodMetrics, export
from caspi.execution.log_copy import LogCopy
from caspi.execution.nodes import meeting_for, training_command
from caspi.execution.standing import heartbeats, newest, standing
from caspi.execution.starts import Deadline, Starts, deadline, read_starts, write_starts
from caspi.execution.surroundings import OnDisk, is_trained
from caspi.launched import Ended, World
from caspi.records.heartbeat import LastMessage
from caspi.records.round_dir import RoundDir, open_round

RETRYABLE = (Preempted.exit_code, Unanswered.exit_code)


def exit_code(code: int) -> int:
    """What the training operator (restartPolicy: ExitCode) understands: a new pod from 128 on, below that the end."""
    return code + 128 if code in RETRYABLE else code


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one pod, from its environment."""

    name: str
    nnodes: str | None = None
    processes: str | None = None
    endpoint: str | None = None
    meeting: str | None = None
    conf: str | None = None
    restarts: int = 3
    starts: int | None = None
    deadline: float | None = None
    metrics_port: int | None = None
    fetch_failure: Path | None = None
    """Where `caspi fetch --failure-to` has left its error, if it had one."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """The training operator's PET_ variables, and the chart's own. UserError names one that is wrong."""

        def number(name: str) -> int | None:
            text = environment.get(name, "")
            if text and not text.isdecimal():
                raise UserError(f'{name}: "{text}" is no whole number')
            return int(text) if text else None

        restarts = number("PET_MAX_RESTARTS")
        return cls(
            name=environment.get("POD_NAME") or socket.gethostname(),
            nnodes=environment.get("PET_NNODES"),
            processes=environment.get("PET_NPROC_PER_NODE"),
            endpoint=environment.get("PET_RDZV_ENDPOINT"),
            meeting=environment.get("PET_RDZV_ID"),
            conf=environment.get("PET_RDZV_CONF"),
            restarts=3 if restarts is None else restarts,
            starts=number("CASPI_STARTS"),
            deadline=number("CASPI_DEADLINE"),
            metrics_port=number("CASPI_METRICS_PORT"),
            fetch_failure=Path(environment["CASPI_FETCH_FAILURE"]) if "CASPI_FETCH_FAILURE" in environment else None,
        )


def run_worker(path: Path, environment: Mapping[str, str]) -> NoReturn:
    """Train the round in `path` together with the other pods, and end the process. Call it from the main thread."""
    log = LogCopy(path / "train" / "logs" / f"{environment.get('POD_NAME') or socket.gethostname()}.log")
    leave = partial(_leave, path / "train", log)

    def at_once(_number: int, _frame: FrameType | None) -> None:
        """No exception: the import of a large package may swallow it."""
        os._exit(leave(Ended(Preempted.exit_code, "asked to stop before training; run the same command to go on")))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, at_once)
    try:
        settings = Settings.of(environment)
        failed = last_message.handed(settings.fetch_failure) if settings.fetch_failure else None
        if failed:
            ended = Ended(failed.code, failed.line)
        else:
            round_dir = open_round(path)
            log.open()
            ended = _trained(round_dir, settings)
    except Exception as error:  # whatever it is, the pod's status has to say it
        ended = last_message.ended_by(error, path, "submit again")
        if ended.code == 1:
            traceback.print_exception(error)
            sys.stderr.flush()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # it ends, with a code that says more
    os._exit(leave(ended))  # torch takes seconds to tidy up, which nobody needs


def _trained(round_dir: RoundDir, settings: Settings) -> Ended:
    folder = round_dir.folder("train")
    _say(f"{settings.name}: started at {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}")
    if is_trained(round_dir):
        return Ended(0, "training has succeeded before; nothing to do")
    pod = Pod(round_dir, settings)
    if over := pod.spent() or pod.due():
        return over
    meeting = meeting_for(
        round_dir.cluster,
        settings.nnodes,
        settings.processes,
        settings.endpoint,
        settings.meeting or round_dir.path.name,
        settings.conf,
    )
    meeting = meeting or Alone(round_dir.path.name, 1)
    with _watched(pod, folder, settings.metrics_port):
        ended = run_agent(training_command(round_dir.path), meeting, settings.restarts, around=pod)
    if ended.code > 128 and pod.out_of_memory():
        ended = Ended(StageFailed.exit_code, ended.line)  # a new pod has the same limit
    pod.ended(ended)
    return ended


class Pod(OnDisk):
    """What the agent of a pod asks for."""

    def __init__(self, round_dir: RoundDir, settings: Settings) -> None:
        super().__init__(round_dir)
        self.settings = settings
        folder = round_dir.folder("train")
        self.membership = Membership()
        self.memory: Memory | None = None
        self.limit: Deadline | None = None
        if settings.deadline is not None:
            self.limit = deadline(folder / "first_start.json", settings.deadline, time.time())
        self.path = folder / "starts" / f"{settings.name}.json"
        self.starts = read_starts(self.path).found(self.stands_at())
        self.alive = False

    def spent(self) -> Ended | None:
        """How the work ends, when this pod was started too often."""
        if self.settings.starts is None:
            return None
        write_starts(self.path, self.starts)
        over = self.starts.spent(self.settings.starts, self.settings.name)
        if over:
            write_starts(self.path, Starts())  # whoever submits it again has read why
        return over

    def begins(self, world: World) -> None:
        self.membership.world = world
        self.memory = memory()
        if not self.alive:
            self.alive = True
            write_starts(self.path, replace(self.starts, running=True))

    def ended(self, ended: Ended) -> None:
        """A preemption and a change of membership are nobody's fault; nor is a wait for others in vain."""
        if self.alive:
            badly = ended.code not in (0, Preempted.exit_code)
            write_starts(self.path, self.starts.ended(self.stands_at(), ended.line, badly))

    def due(self) -> Ended | None:
        return self.limit.due(time.time(), self.stands_at) if self.limit else None

    def out_of_memory(self) -> str:
        return out_of_memory(self.memory, memory())

    def begins_again(self, reason: str) -> None:
        self.membership.world = None
        self.membership.restarts[reason] += 1


@contextmanager
def _watched(pod: Pod, folder: Path, port: int | None) -> Iterator[None]:
    """Heartbeats and metrics from threads, for as long as the agent runs. Neither can stop training."""
    stop: Callable[[], None] | None = None
    if port is not None:
        gpu = pod.round_dir.cluster.gpu
        metrics = PodMetrics(
            pod.round_dir.spec.round, pod.membership, gpu.price if gpu else None, partial(standing, folder)
        )
        try:
            stop = export(metrics, port)
        except OSError as error:
            _say(f"warning: no metrics on port {port} ({error})")
    over = Event()
    beats = Thread(target=heartbeats, args=(folder, lambda: pod.membership.leads, _say, over), daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        if stop:
            stop()


def _leave(folder: Path, log: LogCopy, ended: Ended) -> int:
    """Say how it ended, in the log and to Kubernetes; the code to end with."""
    if ended.line:
        os.write(2, f"{ended.line}\n".encode())  # not print: a signal may have interrupted one
    checkpoint, _ = newest(folder)
    last_message.leave(LastMessage(ended.code, ended.line, standing(folder).step, checkpoint))
    log.close()
    return exit_code(ended.code)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
