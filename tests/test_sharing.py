"""Work shared through a folder: claims, kills, late parts; and a round prepared by several processes at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import caspi.stages.sharing as sharing
from caspi.audit.leakage import fingerprint
from caspi.audit.listening import Heard, listen, read_heard, stretches
from caspi.audit.signals import measure
from caspi.corpus.audio import AudioReader
from caspi.corpus.manifest import Utterance
from caspi.files import write_text
from caspi.records.round_dir import RoundDir
from caspi.stages import audit, export
from caspi.stages.sharing import Board, open_boards
from caspi.stages.stage import perform
from tests.standins.corpora import encoded, make_round, rows, tone, write_parquet

INPUTS = {"data": "1"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become moments."""
    monkeypatch.setattr(sharing, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(sharing, "LOOK_SECONDS", 0.02)


def opened(folder: Path) -> Board:
    board = Board(folder, INPUTS)
    board.open()
    return board


def writing(board: Board, did: list[str], seconds: float = 0.0) -> Any:
    def work(name: str) -> str:
        time.sleep(seconds)
        write_text(board.folder / name, f"content of {name}")
        did.append(name)
        return name

    return work


def share(board: Board, names: list[str], did: list[str], seconds: float = 0.0) -> dict[str, str | None]:
    return dict(board.share({name: name for name in names}, writing(board, did, seconds), 1))


NAMES = [f"{number:05d}.jsonl" for number in range(12)]


def test_alone_the_leader_does_all_parts_and_leaves_nothing(tmp_path: Path) -> None:
    board, did = opened(tmp_path), []
    write_text(board.folder / NAMES[3], "was there")
    assert share(board, NAMES, did) == {name: None if name == NAMES[3] else name for name in NAMES}
    assert did == [name for name in NAMES if name != NAMES[3]]
    assert not list(board.folder.glob("*.claim"))
    board.close()
    assert not list(tmp_path.iterdir())


def test_nobody_does_what_another_one_is_at(tmp_path: Path, quick: None) -> None:
    """Two at once, through the same folder, for longer than a claim without a touch is good."""
    leader, assistant = opened(tmp_path), Board(tmp_path, INPUTS)
    mine: list[str] = []
    theirs: list[str] = []
    thread = threading.Thread(target=share, args=(assistant, NAMES, theirs, 0.15))
    thread.start()
    found = share(leader, NAMES, mine, 0.15)
    thread.join()
    assert found.keys() == set(NAMES)
    assert sorted(mine + theirs) == NAMES, "each part once"
    assert len(mine) > 2 and len(theirs) > 2


def test_a_claim_that_is_touched_is_left_alone_and_one_that_is_not_is_void(tmp_path: Path, quick: None) -> None:
    """By the watcher's own clock: the claims here are of machines whose clocks are a day off."""
    board = opened(tmp_path)
    alive, dead = board.folder / f".{NAMES[0]}.claim", board.folder / f".{NAMES[1]}.claim"
    alive.write_text("assistant")
    dead.write_text("assistant")
    os.utime(dead, (time.time() + 86_400,) * 2)
    done = threading.Event()

    def slow_clock() -> None:
        beats = 0
        while not done.wait(0.1):
            beats += 1
            os.utime(alive, (time.time() - 86_400 + beats,) * 2)
        write_text(board.folder / NAMES[0], "by the one that lives")

    thread = threading.Thread(target=slow_clock)
    thread.start()
    threading.Timer(2.0, done.set).start()
    did: list[str] = []
    began = time.monotonic()
    share(board, NAMES[:3], did)
    thread.join()
    assert did == [NAMES[2], NAMES[1]]
    assert time.monotonic() - began >= 1.9
    assert (board.folder / NAMES[0]).read_text() == "by the one that lives"


def test_a_leader_that_starts_again_does_not_wait_for_itself(tmp_path: Path) -> None:
    """With the real minute: only claims of an assistant that may live are respected."""
    board = opened(tmp_path)
    for name, content in zip(NAMES[:3], ("leader", "", "assistant"), strict=True):
        (board.folder / f".{name}.claim").write_text(content)
    board.open()
    assert [path.name for path in board.folder.glob(".*.claim")] == [f".{NAMES[2]}.claim"]
    did: list[str] = []
    share(board, NAMES[:2], did)
    assert did == NAMES[:2]


def test_other_inputs_are_other_parts(tmp_path: Path) -> None:
    before = opened(tmp_path)
    write_text(before.folder / NAMES[0], "of the old data")
    board = Board(tmp_path, {"data": "2"})
    board.open()
    assert not before.is_open
    assert open_boards(tmp_path) == {board.folder.name}
    write_text(before.folder / NAMES[1], "a late part of an assistant that began before")
    did: list[str] = []
    share(board, NAMES[:2], did)
    assert did == NAMES[:2]


def test_an_assistant_whose_leader_is_through_ends_and_leaves_nothing(tmp_path: Path) -> None:
    leader, assistant = opened(tmp_path), Board(tmp_path, INPUTS)

    def late(name: str) -> None:
        leader.close()  # another one did this part meanwhile
        write_text(assistant.folder / name, "late")

    assert [name for name, _ in assistant.share({name: name for name in NAMES}, late, 1)] == NAMES[:1]
    assert not list(tmp_path.iterdir())


def test_an_error_frees_the_part_for_others(tmp_path: Path) -> None:
    leader, assistant = opened(tmp_path), Board(tmp_path, INPUTS)

    def fails(_name: str) -> None:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        list(assistant.share({NAMES[0]: NAMES[0]}, fails, 1))
    did: list[str] = []
    share(leader, NAMES[:1], did)
    assert did == NAMES[:1]


def test_what_was_heard_is_read_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    clips = {
        "a": tone(1.3),
        "b": (0.1 * rng.standard_normal(20_011)).astype(np.float32),
        "c": np.zeros(800, np.float32),
    }
    for name, clip in clips.items():
        (tmp_path / f"{name}.wav").write_bytes(encoded(clip, subtype="FLOAT"))
    (tmp_path / "broken.wav").write_bytes(b"RIFF no audio")
    names = [*clips, "broken", "gone", "plain"]
    (tmp_path / "plain.wav").write_bytes(encoded(tone()))
    utterances = [Utterance(f"s/{name}", f"s/{name}.wav", "text", 1.0, "s", "d") for name in names]
    reader = AudioReader({"s": tmp_path})
    [stretch] = stretches(utterances, {f"s/{name}" for name in names if name != "plain"}, tmp_path).values()
    assert listen(reader, stretch) == len(names)
    found: dict[str, Heard] = dict(read_heard(stretch.part))
    for name in clips:
        clip, heard = reader.read(f"s/{name}.wav"), found[f"s/{name}"]
        assert heard.signals == measure(clip)
        printed = fingerprint(clip)
        if printed is None:
            assert heard.fingerprint is None
        else:
            assert heard.fingerprint is not None
            assert heard.fingerprint.dtype == printed.dtype
            assert heard.fingerprint.tobytes() == printed.tobytes()
    assert found["s/c"].fingerprint is None
    assert found["s/broken"].problem and found["s/broken"].digest and found["s/broken"].signals is None
    assert found["s/gone"].problem and found["s/gone"].digest is None
    assert found["s/plain"] == Heard(digest=found["s/plain"].digest)


# --- processes: a leader and assistants as pods run them, slowed down, one of them killed at a part of its own choice

PROCESS = """
import json, os, signal, sys, time
from pathlib import Path
import caspi.audit.listening as listening
import caspi.execution.prepare as preparation
import caspi.stages.audit as audit
import caspi.stages.export as export
import caspi.stages.sharing as sharing

role, round_file, runs, digest, log, kill_at = json.loads(sys.argv[1])
listening.SHORTEST = 6
preparation.LOOK_SECONDS = 0.05
sharing.BEAT_SECONDS, sharing.STALE_SECONDS, sharing.LOOK_SECONDS = 0.1, 1.5, 0.05
begun = []

def slowed(work, part_of):
    def slow(*arguments):
        begun.append(part_of(arguments).split()[0])
        time.sleep(0.12)
        if begun.count(begun[-1]) == kill_at.get(begun[-1]):
            os.kill(os.getpid(), signal.SIGKILL)
        found = work(*arguments)
        with open(log, "a") as file:
            file.write(f"{part_of(arguments)}\\n")
        return found
    return slow

export.index_shard = slowed(export.index_shard, lambda arguments: f"export {arguments[2].name}")
audit.listen = slowed(audit.listen, lambda arguments: f"audit {arguments[1].part.name}")
cluster = Path(round_file).with_name("cluster.yaml")
Path(log).touch()
if role == "assistant":
    print(preparation.assist(Path(round_file), Path(runs), digest))
else:
    preparation.prepare(preparation.adopt(Path(round_file), cluster, Path(runs), digest), None, print)
"""


class Pods:
    """Processes that prepare the round whose directory, elsewhere, was made by one alone."""

    def __init__(self, folder: Path, alone: RoundDir) -> None:
        self.folder, self.alone = folder, alone
        self.started: list[tuple[subprocess.Popen[str], Path]] = []

    def start(self, role: str, **kill_at: int) -> subprocess.Popen[str]:
        """Start one, and wait until it is at work; it is killed at its n-th part of a stage."""
        log = self.folder / f"{len(self.started)}.log"
        given = [role, str(self.alone.path / "round.yaml"), str(self.folder / "runs"), self.alone.spec.digest, str(log)]
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, json.dumps([*given, kill_at])],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append((process, log))
        while not log.exists() and process.poll() is None:
            time.sleep(0.05)
        return process

    def did(self) -> list[list[str]]:
        return [log.read_text().splitlines() for _, log in self.started]

    def end(self) -> None:
        for process, _ in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RoundDir:
    """A round of 14 shards, exported and audited by one process."""
    folder = tmp_path_factory.mktemp("alone")
    rng, made = np.random.default_rng(1), rows(88)
    for row in made:
        row["audio"]["bytes"] = encoded((0.1 * rng.standard_normal(16_000)).astype(np.float32))
    write_parquet(folder / "test" / "test.parquet", made[84:])
    for number in range(14):
        write_parquet(folder / "crowd" / f"{number:02d}.parquet", made[6 * number : 6 * number + 6])
    values: dict[str, Any] = {"sources": [{"name": "crowd", "path": str(folder / "crowd")}]}
    round_dir = make_round(folder, **values)
    perform(export.STAGE, round_dir)
    perform(audit.STAGE, round_dir)
    return round_dir


@pytest.fixture
def pods(tmp_path: Path, alone: RoundDir) -> Iterator[Pods]:
    found = Pods(tmp_path, alone)
    yield found
    found.end()


def assert_same(pods: Pods) -> None:
    [made] = [path for path in (pods.folder / "runs").iterdir() if path.is_dir()]
    there = RoundDir(made, pods.alone.spec, pods.alone.cluster)
    for stage in (export.STAGE, audit.STAGE):
        assert there.succeeded(stage.name).digest == pods.alone.succeeded(stage.name).digest
        assert _files(there.folder(stage.name)) == _files(pods.alone.folder(stage.name)), "no part, no claim is left"


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "record.json"
    } | {f"{path.relative_to(folder)}/": b"" for path in folder.rglob("*") if path.is_dir()}


def test_three_processes_share_a_round(pods: Pods) -> None:
    assistants = [pods.start("assistant"), pods.start("assistant")]
    leader = pods.start("leader")
    out, _ = leader.communicate(timeout=120)
    assert leader.returncode == 0, out
    assert "gate    passed" in out
    for assistant in assistants:
        assert assistant.communicate(timeout=60)[0].splitlines()[-1] == "the audit is done"
        assert assistant.returncode == 0
    assert_same(pods)
    did = pods.did()
    assert len({part for parts in did for part in parts}) == sum(map(len, did)), "no part is done twice"
    for parts in did:
        assert {part.split()[0] for part in parts} == {"export", "audit"}, "each of them took parts of both"


@pytest.mark.parametrize("kill_at", [{"export": 2}, {"audit": 2}], ids=["in the export", "in the audit"])
def test_an_assistant_is_killed(pods: Pods, kill_at: dict[str, int]) -> None:
    killed, other, leader = pods.start("assistant", **kill_at), pods.start("assistant"), pods.start("leader")
    out, _ = leader.communicate(timeout=120)
    assert leader.returncode == 0, out
    assert killed.wait(timeout=60) == -signal.SIGKILL
    assert other.wait(timeout=60) == 0
    assert_same(pods)


def test_the_leader_is_killed_and_starts_again(pods: Pods) -> None:
    assistant = pods.start("assistant")
    for kill_at in ({"export": 3}, {"audit": 2}, {}):
        leader = pods.start("leader", **kill_at)
        out, _ = leader.communicate(timeout=120)
        assert leader.returncode == (-signal.SIGKILL if kill_at else 0), out
    assert assistant.wait(timeout=60) == 0
    assert_same(pods)
