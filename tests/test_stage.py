"""What all stages share: records, resume, refusal, locks; and a round as a row of processes."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

import caspi.stages.stage as stage_module
from caspi.errors import Diverged, Preempted, StageFailed, UserError
from caspi.execution import local
from caspi.files import atomic, write_json, write_text
from caspi.records.record import read_record
from caspi.records.round_dir import RoundDir, create, find_round, open_round
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.stages.stage import Outcome, Stage, perform
from tests.test_bad_input import GOOD, changed


class Found(BaseModel):
    answer: int


@pytest.fixture
def round_dir(tmp_path: Path) -> RoundDir:
    return create(tmp_path / "runs", parse(GOOD, RoundSpec, "good"), ClusterSpec(), tmp_path)


def stage(work: Callable[[RoundDir], Outcome], source: str = "a") -> Stage:
    return Stage(name="export", inputs=lambda _: {"source": source}, work=work)


def good_work(round_dir: RoundDir) -> Outcome:
    write_text(round_dir.folder("export") / "made.txt", "made\n")
    return Outcome(Found(answer=42), ["made.txt"], {"seconds_of_luck": 3})


def test_done_once(round_dir: RoundDir) -> None:
    first, worked = perform(stage(good_work), round_dir)
    assert worked
    again, worked = perform(stage(good_work), round_dir)
    assert not worked
    assert again == first
    assert first.results == {"answer": 42}
    assert set(first.outputs) == {"made.txt"}


def test_done_again_when_the_inputs_differ_or_an_output_is_gone(round_dir: RoundDir) -> None:
    first, _ = perform(stage(good_work), round_dir)
    other, worked = perform(stage(good_work, "b"), round_dir)
    assert worked
    assert other.digest != first.digest
    (round_dir.folder("export") / "made.txt").unlink()
    back, worked = perform(stage(good_work, "b"), round_dir)
    assert worked
    assert back.digest == other.digest, "the digest leaves out when and where"


@pytest.mark.parametrize(
    ("error", "recorded"), [(Diverged("NaN"), True), (UserError("typo"), False), (Preempted("later"), False)]
)
def test_failures(round_dir: RoundDir, error: Exception, recorded: bool) -> None:
    def work(_: RoundDir) -> Outcome:
        raise error

    with pytest.raises(type(error)):
        perform(stage(work), round_dir)
    record = round_dir.record("export")
    assert (record is not None) == recorded
    if record:
        assert record.status == "failed"
        assert record.error == "NaN"
        with pytest.raises(UserError, match=r"stage export failed \(NaN\); run `caspi stage export"):
            round_dir.succeeded("export")


def test_whichever_rank_fails_leaves_the_record(round_dir: RoundDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data worker died, say; the leader only noticed that it was gone, and leaves none."""

    def fail(_: RoundDir) -> Outcome:
        raise StageFailed("a data worker died")

    monkeypatch.setenv("RANK", "1")
    with pytest.raises(StageFailed):
        perform(stage(fail), round_dir)
    record = round_dir.record("export")
    assert record is not None and record.error == "a data worker died"


def test_two_at_once_are_refused(round_dir: RoundDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "LOCK_SECONDS", 0.2)
    with (round_dir.path / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is at work on this round"):
            perform(stage(good_work), round_dir)
    perform(stage(good_work), round_dir)


def test_what_is_done_is_adopted_while_another_is_at_work(round_dir: RoundDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that is run anew while its round is trained does not wait for the end of that; what has to be made
    anew is refused."""
    monkeypatch.setattr(stage_module, "LOCK_SECONDS", 0.2)
    perform(stage(good_work), round_dir)
    with (round_dir.path / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not perform(stage(good_work), round_dir)[1]
        with pytest.raises(UserError, match="is at work on this round"):
            perform(stage(good_work, source="b"), round_dir)
        (round_dir.folder("export") / "made.txt").unlink()
        with pytest.raises(UserError, match="is at work on this round"):
            perform(stage(good_work), round_dir)


def test_a_changed_round_yaml_is_refused(round_dir: RoundDir) -> None:
    path = round_dir.path / "round.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 42", "seed: 43"), encoding="utf-8")
    with pytest.raises(UserError, match=r"round\.yaml was changed"):
        open_round(round_dir.path)


def test_a_damaged_record_is_named(round_dir: RoundDir) -> None:
    path = round_dir.folder("export") / "record.json"
    write_json(path, {"stage": "export"})
    with pytest.raises(UserError, match="delete the file to run the stage again"):
        read_record(path)


def test_rounds_are_found_by_name(tmp_path: Path) -> None:
    for values in (changed(), changed(round="tidy-2"), changed(seed=7)):
        create(tmp_path, parse(values, RoundSpec, "x"), ClusterSpec(), tmp_path)
    newest = create(tmp_path, parse(changed(seed=7), RoundSpec, "x"), ClusterSpec(), tmp_path)
    write_json(newest.folder("export") / "record.json", {})
    assert find_round(tmp_path, "tidy").spec.seed == 7
    assert find_round(tmp_path, "tidy-2").spec.round == "tidy-2"
    with pytest.raises(UserError, match='no round "tid" under'):
        find_round(tmp_path, "tid")


def test_atomic_writes_leave_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic(path) as file:
            file.write("new, but")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_of_a_stage(tmp_path: Path) -> None:
    spec = parse(GOOD, RoundSpec, "good")
    many = create(tmp_path, spec, ClusterSpec(processes_per_node=3), tmp_path)
    for name in ("train", "audit"):  # train reads in the cluster file how many processes it starts
        assert local.stage_command(many, name)[-4:] == ["stage", name, "--round-dir", str(many.path)]
    wide = create(tmp_path, spec, ClusterSpec(nodes=2), tmp_path)
    with pytest.raises(UserError, match="nodes = 2"):
        local.stage_command(wide, "train")


def test_a_round_stops_at_the_stage_that_fails(round_dir: RoundDir) -> None:
    """The sources of this round are not there: export says so with code 2, and the report is still made."""
    seen: list[str] = []
    with pytest.raises(local.StageExit) as caught:
        local.run_round(round_dir, lambda name, *_: seen.append(name), lambda *_: None)
    assert caught.value.exit_code == 2
    assert seen == ["export"]
    assert (round_dir.folder("report") / "index.html").exists()
