"""The logs of a round's pods as one: merged, followed over restarts and replaced pods, each line once."""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from caspi.errors import UserError
from caspi.fleet.api import Api, Broken, NotFound, Object
from caspi.fleet.diagnose import Diagnosis, diagnose
from caspi.fleet.endings import container_statuses
from caspi.fleet.objects import role
from caspi.fleet.refusals import OutOfReach
from caspi.fleet.snapshot import PODS, Snapshot, pod_name, read_snapshots

LOOK_EVERY = 2.0
"""Seconds between two looks at which pods there are."""
MOST = 100
"""Pods that are followed at once; more need --worker."""


@dataclass(slots=True)
class Cursor:
    """Where a log was read to. The API begins again at a whole second: what was seen of it is not given twice."""

    at: str = ""
    """Time of the last line, with nine digits after the second."""
    seen: Counter[str] = field(default_factory=Counter)
    """Lines of that very time."""

    def new(self, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
        """(time, text) of the lines that were not given before. One reading, from its beginning."""
        replayed = Counter(self.seen)
        for line in lines:
            stamp, _, text = line.partition(" ")
            at = _fixed(stamp)
            if at < self.at:
                continue
            if at == self.at and replayed[text] > 0:
                replayed[text] -= 1
                continue
            if at > self.at:
                self.at, self.seen, replayed = at, Counter(), Counter()
            self.seen[text] += 1
            yield at, text

    @property
    def since(self) -> dict[str, str]:
        """For the next reading."""
        return {"sinceTime": f"{self.at[:19]}Z"} if self.at else {}


@dataclass(frozen=True, slots=True)
class Source:
    """One container of one pod: a pod that was replaced is another one, though its name is the same."""

    pod: str
    uid: str
    container: str
    label: str
    restarted: bool = field(default=False, compare=False)
    """In place, so that there is a log of the container before."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log, with whom it is of."""

    at: str
    label: str
    text: str

    def __lt__(self, other: Line) -> bool:
        return self.at < other.at


@dataclass(slots=True)
class Silence:
    """Of a cluster that does not answer, or refuses what it answered before."""

    patience: float
    since: float = field(default_factory=time.monotonic)
    answered: bool = False
    told: bool = False

    def goes_on(self, error: UserError) -> Line | None:
        """Wait on, and say so once; raises the error when it lasts too long, or won't get better."""
        if time.monotonic() - self.since >= self.patience or not (self.answered or isinstance(error, OutOfReach)):
            raise error
        told, self.told = self.told, True
        return None if told else Line("", "caspi", f"{error}; waiting")

    def ends(self) -> None:
        self.since, self.answered, self.told = time.monotonic(), True, False


def read_logs(api: Api, look: Snapshot, worker: int | None, since: int | None) -> Iterator[Line]:
    """What there is now, in the order of time. `since` in seconds."""
    yield from _history(api, _sources(look, worker), {}, since)


def follow_logs(
    api: Api, name: str, worker: int | None, since: int | None, patience: float = 0.0
) -> Iterator[Line | Diagnosis]:
    """What there is and what comes, until the job has ended; the diagnosis is last. Raises UserError.

    A cluster that does not answer is waited for, for `patience` seconds; what it had to say comes then.
    """
    cursors: dict[Source, Cursor] = {}
    lines: queue.Queue[Line] = queue.Queue()
    reading: dict[Source, threading.Thread] = {}
    stop = threading.Event()
    first, silence = True, Silence(patience)
    try:
        while True:
            try:
                looks = read_snapshots(api, name)
            except UserError as error:
                if line := silence.goes_on(error):
                    yield line
                stop.wait(LOOK_EVERY)
                continue
            silence.ends()
            look = looks[0] if looks else None
            sources = _sources(look, worker) if look else []
            if first:
                yield from _history(api, sources, cursors, since)
                first = False
            for source in sources:
                if source not in reading:
                    cursor = cursors.setdefault(source, Cursor())
                    thread = threading.Thread(target=_pump, args=(api, source, cursor, lines, stop), daemon=True)
                    reading[source] = thread
                    thread.start()
            ended = diagnose(look) if look else None
            if look is None or (ended and ended.ended):
                for thread in reading.values():
                    thread.join(timeout=10)
                yield from _waiting(lines)
                if ended:
                    yield ended
                return
            until = time.monotonic() + LOOK_EVERY
            while (left := until - time.monotonic()) > 0:
                try:
                    yield lines.get(timeout=left)
                except queue.Empty:
                    break
    finally:
        stop.set()


def _sources(look: Snapshot, worker: int | None) -> list[Source]:
    """The containers of a round that have begun. UserError when they are too many at once."""
    found = []
    for pod in look.pods:
        name = role(pod, look.name)
        if worker is not None and name != f"worker-{worker}":
            continue
        for container, restarts in _begun(pod).items():
            label = name if container in ("pytorch", "prepare") else f"{name} {container}"
            found.append(Source(pod_name(pod), pod["metadata"]["uid"], container, label, restarts > 0))
    if len(found) > MOST:
        raise UserError(f"{len(found)} logs are too many at once; say which with --worker N", where=look.name)
    return found


def _begun(pod: Object) -> dict[str, int]:
    """Containers that have begun, and how often they were restarted in place."""
    return {
        one["name"]: int(one.get("restartCount", 0))
        for one in container_statuses(pod)
        if "running" in one.get("state", {}) or "terminated" in one.get("state", {}) or one.get("restartCount")
    }


def _history(api: Api, sources: list[Source], cursors: dict[Source, Cursor], since: int | None) -> Iterator[Line]:
    readers = []
    for source in sources:
        cursor = cursors.setdefault(source, Cursor())
        readers.append(_container(api, source, cursor, since))
    yield from heapq.merge(*readers)


def _container(api: Api, source: Source, cursor: Cursor, since: int | None) -> Iterator[Line]:
    """The container before a restart in place, then the one of now."""
    for previous in (True, False) if source.restarted else (False,):
        query = {"previous": "true"} if previous else {}
        if since is not None:
            query["sinceSeconds"] = str(since)
        yield from _read(api, source, cursor, query)


def _read(api: Api, source: Source, cursor: Cursor, query: dict[str, str]) -> Iterator[Line]:
    path = f"{PODS}/{source.pod}/log"
    try:
        lines = api.lines(path, container=source.container, timestamps="true", **query)
        for at, text in cursor.new(lines):
            yield Line(at, source.label, text)
    except (NotFound, UserError, Broken):  # gone, or not begun, or its node is silent: there is no more to be had
        return


def _pump(api: Api, source: Source, cursor: Cursor, lines: queue.Queue[Line], stop: threading.Event) -> None:
    """Read one container until it has ended, again and again where the connection breaks."""
    while not stop.is_set():
        path = f"{PODS}/{source.pod}/log"
        try:
            if api.get(f"{PODS}/{source.pod}")["metadata"]["uid"] != source.uid:
                return
            stream = api.lines(path, container=source.container, timestamps="true", follow="true", **cursor.since)
            for at, text in cursor.new(stream):
                lines.put(Line(at, source.label, text))
                if stop.is_set():
                    return
            if _over(api, source):
                return
        except NotFound:
            return
        except (Broken, UserError):
            pass
        stop.wait(1)


def _over(api: Api, source: Source) -> bool:
    """Whether this container has ended for good: a log's end may also be a kubelet that went away."""
    pod = api.get(f"{PODS}/{source.pod}")
    if pod["metadata"]["uid"] != source.uid:
        return True
    for one in container_statuses(pod):
        if one["name"] == source.container:
            return "terminated" in one.get("state", {})
    return True


def _waiting(lines: queue.Queue[Line]) -> Iterator[Line]:
    while True:
        try:
            yield lines.get_nowait()
        except queue.Empty:
            return


def _fixed(stamp: str) -> str:
    """2026-11-21T15:00:00.5Z with nine digits, so that times compare as texts."""
    whole, _, rest = stamp.rstrip("Z").partition(".")
    return f"{whole}.{rest[:9]:0<9}"
