"""Killed, asked to stop, out of disk, out of data: training goes on as if nothing had been, or says why not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from caspi.errors import Diverged, OutOfBudget, Preempted, StageFailed, UserError
from caspi.families.base import Model
from caspi.records.results import DevScore
from caspi.training.checkpoint import State, newest_checkpoint, prune, publish, ranked, read_checkpoint, save_checkpoint
from tests.ranks import FORK
from tests.toy_family import ToyFamily, ToyModel, ToyNetwork
from tests.training_work import Tones, spec_of, trained_by, utterances, work_in

RICH = {
    "phases": [
        {"name": "B", "epochs": 1, "rates": {"projector": 5e-3, "lm_head": 5e-3}},
        {"name": "A", "epochs": 2, "rates": {"all": 5e-3}},
    ],
    "augment": {"specaugment": {"freq": [1, 3], "time": [1, 10]}, "speed": [0.9, 1.0, 1.1]},
    "keep": {"every_steps": 3, "last": 2, "best": 1},
}  # everything that draws random numbers, and a phase boundary at step 8 of 24


# --- invariant 4: exact resume


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    _ending(folder)
    return folder


def test_killed_and_resumed_is_bit_equal(whole: Path, tmp_path: Path) -> None:
    """kill -9 at several steps, with augmentation, dropout and a data worker."""
    for at in (4, 9, 17):
        _until(tmp_path / "killed", at, lambda child: os.kill(child.pid, signal.SIGKILL))
    _ending(tmp_path / "killed")
    assert _weights(tmp_path / "killed").keys() == _weights(whole).keys()
    for name, tensor in _weights(whole).items():
        assert torch.equal(tensor, _weights(tmp_path / "killed")[name]), name
    assert _curve(tmp_path / "killed") == _curve(whole)
    kinds = [line["kind"] for line in _curve(whole)]
    assert (kinds.count("train"), kinds.count("dev")) == (24, 4)  # scored at 8, 10, 20 and 24


def test_killed_its_data_workers_end_too(tmp_path: Path) -> None:
    """They are forked, so they hold what it held: the lock of the round, for seconds, while the next run waits."""
    killed: list[float] = []

    def kill(child: Any) -> None:
        killed.append(time.monotonic())
        os.kill(child.pid, signal.SIGKILL)

    _until(tmp_path, 4, kill)  # it returns when every process that shares the child's files is gone
    assert time.monotonic() - killed[0] < 2


def test_a_resume_without_the_optimizer_is_not(whole: Path, tmp_path: Path) -> None:
    """The twin: the comparison sees a resume that forgets AdamW's moments."""
    _until(tmp_path / "killed", 17, lambda child: os.kill(child.pid, signal.SIGKILL))
    found = newest_checkpoint(tmp_path / "killed/train/checkpoints", "test")
    assert found is not None and found.step % 3 == 0
    state, model = found.state, ToyFamily().load(found.path, None, torch.device("cpu"))
    shutil.rmtree(found.path)
    save_checkpoint(found.path.parent, state, model, {})
    _ending(tmp_path / "killed")
    assert _curve(tmp_path / "killed") != _curve(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_says_so(number: int, whole: Path, tmp_path: Path) -> None:
    """The signal goes to the whole process group, data worker included, as Ctrl-C and Kubernetes send it."""
    child = _until(tmp_path / "asked", 10, lambda child: os.killpg(child.pid, number), group=True)
    assert child.exitcode == Preempted.exit_code == 75
    last = _curve(tmp_path / "asked")[-1]["step"]
    assert 10 <= last <= 14
    assert (tmp_path / "asked/train/latest").read_text() == f"step-{last:06d}\n"
    assert read_checkpoint(tmp_path / f"asked/train/checkpoints/step-{last:06d}", thorough=True)
    _ending(tmp_path / "asked")
    assert _curve(tmp_path / "asked") == _curve(whole)


def _ending(folder: Path) -> None:
    child = _child(folder)
    child.join(60)
    assert child.exitcode == 0


def _until(folder: Path, step: int, act: Callable[[Any], None], group: bool = False) -> Any:
    child = _child(folder, group)
    metrics = folder / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.read_bytes().count(b'"kind":"train"') < step:
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    act(child)
    child.join(60)
    return child


def _child(folder: Path, group: bool = False) -> Any:
    child = FORK.Process(target=_run, args=(folder, group))
    child.start()
    return child


def _run(folder: Path, group: bool) -> None:
    if group:
        os.setpgid(0, 0)
    spec = spec_of(**RICH)
    try:
        trained_by(work_in(folder, workers=1, spec=spec, family=ToyFamily(dropout=0.1)))
    except Preempted as error:
        os._exit(error.exit_code)
    os._exit(0)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "train/checkpoints/step-000024/model.safetensors")


def _curve(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock wrote; each step once and in order."""
    clock = ("seconds", "utterances_per_second", "waited")
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


# --- invariant 7: every checkpoint is whole


def _saved(folder: Path, *steps: int, wer: float = 0.5, identity: str = "test") -> ToyModel:
    torch.manual_seed(0)
    model = ToyModel(ToyNetwork(), torch.device("cpu"))
    for step in steps:
        scores = tuple(DevScore(step=s, epoch=s / 10, wer=wer, cer=wer, loss=1.0) for s in steps if s <= step)
        save_checkpoint(folder, _state(step, scores, identity), model, {"x.exp_avg": torch.ones(1000)})
    return model


def _state(step: int, dev: tuple[DevScore, ...] = (), identity: str = "test") -> State:
    return State(identity, step, "A", dev, 0, 1.0, {"torch": "2"})


def _flip(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "model.safetensors").write_bytes(data)


def _emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


TEARS: dict[str, Callable[[Path], None]] = {
    "weights cut short": lambda path: os.truncate(path / "model.safetensors", 100),
    "one bit of the weights": _flip,
    "optimizer cut short": lambda path: os.truncate(path / "engine/optimizer.safetensors", 100),
    "optimizer missing": lambda path: (path / "engine/optimizer.safetensors").unlink(),
    "config missing": lambda path: (path / "config.json").unlink(),
    "state missing": lambda path: (path / "engine/state.json").unlink(),
    "state cut short": lambda path: os.truncate(path / "engine/state.json", 30),
    "no manifest": lambda path: (path / "checkpoint.json").unlink(),
    "manifest cut short": lambda path: os.truncate(path / "checkpoint.json", 30),
    "manifest of something else": lambda path: (path / "checkpoint.json").write_text("[1, 2]"),
    "an empty folder": lambda path: _emptied(path),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_never_picked(tear: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    model = _saved(folder, 10, 20)
    newest = newest_checkpoint(folder, "test")
    assert newest is not None and newest.step == 20
    TEARS[tear](folder / "step-000020")
    assert (tmp_path / "latest").read_text() == "step-000020\n"  # the pointer lies now, and is not believed
    before = newest_checkpoint(folder, "test")
    assert before is not None and before.step == 10
    if tear != "one bit of the weights":  # saving looks at sizes; the digest is for reading
        save_checkpoint(folder, _state(20), model, {})
        again = newest_checkpoint(folder, "test")
        assert again is not None and again.step == 20


def test_killed_while_saving_leaves_nothing_half(tmp_path: Path) -> None:
    """At each of the points where a save touches the disk, in turn."""
    folder = tmp_path / "checkpoints"
    model = _saved(folder, 10)
    seen = set()
    for point in range(1, 40):
        child = FORK.Process(target=_save_and_die, args=(folder, model, point))
        child.start()
        child.join(30)
        found = newest_checkpoint(folder, "test")
        assert found is not None
        seen.add(found.step)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert seen == {10, 20} and point > 8
    prune(folder, 5, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000010", "step-000020"]


def _save_and_die(folder: Path, model: Model, point: int) -> None:
    left = [point]

    def audit(event: str, _: Any) -> None:
        if event in ("open", "os.rename", "os.mkdir", "shutil.rmtree"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    save_checkpoint(folder, _state(20), model, {"x.exp_avg": torch.ones(1000)})
    os._exit(0)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    model = _saved(folder, 10)
    child = FORK.Process(target=_save_on_a_full_disk, args=(folder, model))
    child.start()
    child.join(30)
    assert child.exitcode == UserError.exit_code
    assert sorted(path.name for path in folder.iterdir()) == ["step-000010"]
    found = newest_checkpoint(folder, "test")
    assert found is not None and found.step == 10


def _save_on_a_full_disk(folder: Path, model: Model) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    try:
        save_checkpoint(folder, _state(20), model, {"x.exp_avg": torch.ones(1000)})
    except UserError as error:
        os._exit(error.exit_code if "step 20 could not be written" in str(error) else 1)
    os._exit(0)


def test_other_work_is_set_aside_not_continued(tmp_path: Path) -> None:
    _saved(tmp_path / "checkpoints", 10, identity="abcdef0123")
    assert newest_checkpoint(tmp_path / "checkpoints", "test") is None
    assert (tmp_path / "checkpoints-of-abcdef01" / "step-000010" / "model.safetensors").exists()


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    scores = [0.9, 0.3, 0.5, 0.3, 0.6, 0.7]
    dev = tuple(DevScore(step=10 * i, epoch=i, wer=w, cer=w, loss=1.0) for i, w in enumerate(scores, start=1))
    model = _saved(tmp_path / "unused", 1)
    for count in range(1, 7):
        save_checkpoint(folder, _state(10 * count, dev[:count]), model, {})
        prune(folder, keep_last=2, keep_best=1)
    assert sorted(path.name for path in folder.iterdir()) == ["step-000020", "step-000050", "step-000060"]
    assert [score.step for score in ranked(dev)[:3]] == [20, 40, 30]


def test_publishing_replaces_the_model_and_shares_its_files(tmp_path: Path) -> None:
    _saved(tmp_path / "checkpoints", 10, 20)
    for step in (10, 20):
        checkpoint = read_checkpoint(tmp_path / f"checkpoints/step-{step:06d}")
        assert checkpoint is not None
        publish(checkpoint, tmp_path / "model")
        assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
        assert (checkpoint.path / "model.safetensors").samefile(tmp_path / "model/model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "latest", "model"]


# --- invariant 8, and bad data


class Poisoned(ToyModel):
    """NaN from the tenth forward pass of training on."""

    def example(self, clip: Any, text: str) -> Any:
        example = super().example(clip, text)
        if len(clip) > 1490 * 16:
            example.features[0, 0] = float("nan")
        return example


class PoisonedFamily(ToyFamily):
    def load(self, folder: Path, spec: Any, device: torch.device) -> ToyModel:
        return Poisoned(super().load(folder, spec, device).network, device)


def test_nan_stops_and_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    work = work_in(tmp_path, count=200, family=PoisonedFamily(), spec=spec_of(keep={"every_steps": 1}))
    with pytest.raises(Diverged, match=r"step \d+: loss is nan.*(best checkpoint is|no checkpoint yet)"):
        trained_by(work)
    for path in work.folder.glob("checkpoints/step-*"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path / "model.safetensors").values())


def test_wer_out_of_bounds_stops(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"dev WER [\d.]+ is above train.stop.wer_above = 0.01"):
        trained_by(work_in(tmp_path, spec=spec_of(stop={"wer_above": 0.01})))


def test_no_gain_stops_early_and_stays_stopped(tmp_path: Path) -> None:
    phases = [{"name": "full", "epochs": 9, "rates": {"all": 1e-9}}]
    spec = spec_of(phases=phases, stop={"no_gain_after_epochs": 2})
    first = trained_by(work_in(tmp_path, spec=spec))
    assert first.stopped and first.stopped.startswith("no gain on dev for 2") and first.steps < 72
    again = trained_by(work_in(tmp_path, spec=spec))
    assert (again.steps, again.chosen.step, again.stopped) == (first.steps, first.chosen.step, first.stopped)


def test_the_budget_stops_with_its_own_code(tmp_path: Path) -> None:
    gpu = {"gpus_per_node": 1, "gpu": {"product": "X", "memory": "1GiB", "price": "1000000 USD/h"}}
    work = work_in(tmp_path, cluster=gpu, spec=spec_of(stop={"cost": "1 USD"}))
    with pytest.raises(OutOfBudget, match=r"training cost [\d.]+ USD, train.stop.cost is 1.00 USD"):
        trained_by(work)
    assert newest_checkpoint(work.folder / "checkpoints", "test")
    euro = work_in(tmp_path, cluster=gpu, spec=spec_of(stop={"cost": "1 EUR"}))
    with pytest.raises(UserError, match="in EUR, the price of the cluster in USD"):
        trained_by(euro)


def test_broken_audio_is_skipped_and_counted(tmp_path: Path) -> None:
    data = utterances(60)
    broken = (data[3].audio, data[30].audio)
    figures = {}
    for name, bad in (("fine", ()), ("broken", broken)):
        work = work_in(tmp_path / name, broken=bad)
        figures[name] = trained_by(work).figures["skipped"]
        lines = [json.loads(line) for line in (work.folder / "metrics.jsonl").read_text().splitlines()]
        assert sum(x["utterances"] for x in lines if x["kind"] == "train") == 3 * (60 - len(bad))
        words = [len(u.text) + 1 for u in data if u.audio not in bad]
        assert sum(x["tokens"] for x in lines if x["kind"] == "train") == 3 * sum(words)
    assert figures == {"fine": 0, "broken": 6}


def test_nothing_but_broken_audio_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"none of its audio could be decoded \(for example tones/"):
        trained_by(work_in(tmp_path, broken=tuple(u.audio for u in utterances(60))))


class Dying(Tones):
    def read(self, audio: str) -> Any:
        os._exit(1)


def test_a_data_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    work = work_in(tmp_path, workers=1)
    object.__setattr__(work, "reader", Dying())
    with pytest.raises(StageFailed, match="a data worker died"):
        trained_by(work)


def test_too_long_an_utterance_is_refused_before_training(tmp_path: Path) -> None:
    work = work_in(tmp_path, cap=1.2)
    with pytest.raises(UserError, match=r"does not fit, a micro-batch holds at most 1\.2 padded seconds"):
        trained_by(work)
    assert not (tmp_path / "train").exists()


# --- it learns, and what it saves is a model


def test_it_learns(tmp_path: Path) -> None:
    phases = [{"name": "full", "epochs": 12, "rates": {"all": 3e-2}}]
    often = {"every_steps": 60, "utterances": 20}
    spec = spec_of(phases=phases, global_batch=10, evaluate=often, keep={"every_steps": 60})
    trained = trained_by(work_in(tmp_path, count=200, spec=spec))
    assert trained.dev[0].loss > 5 * ranked(tuple(trained.dev))[0].loss and ranked(tuple(trained.dev))[0].wer < 0.1


def test_a_checkpoint_loads_through_the_package_and_transcribes(tmp_path: Path) -> None:
    """In a fresh process, by qwen_asr alone: nothing of this project is imported there."""
    from caspi.families.qwen3_asr import QWEN3_ASR

    spec = spec_of(phases=[{"name": "full", "epochs": 1, "rates": {"all": 1e-3}}])
    trained = trained_by(work_in(tmp_path, count=8, spec=spec, family=QWEN3_ASR))
    program = (
        "import sys, numpy as np; from qwen_asr import Qwen3ASRModel\n"
        "model = Qwen3ASRModel.from_pretrained(sys.argv[1], max_new_tokens=8)\n"
        "found = model.transcribe((np.zeros(16000, dtype=np.float32), 16000))\n"
        "assert 'caspi' not in sys.modules; print('heard', [one.text for one in found])"
    )
    run = subprocess.run([sys.executable, "-c", program, str(trained.chosen.path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "heard ['" in run.stdout
