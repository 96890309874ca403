"""Resume, SIGTERM, torn checkpoints and a changing number of ranks, with the real families: what test_engine_resume.py
shows for the toy, where a step takes a millisecond. A step takes longer here, so this is part of `make test-engine`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from caspi.errors import Preempted
from caspi.families import family_of
from caspi.spec import RoundSpec
from caspi.training.checkpoint import newest_checkpoint, read_checkpoint
from caspi.training.data import Orders
from caspi.training.distributed import processes
from caspi.training.engine import train
from tests.ranks import FORK, on_ranks
from tests.training_work import WORDS, spec_of, utterances, work_in

pytestmark = pytest.mark.slow
FAMILIES = ("qwen3-asr", "ctc", "parakeet")
UTTERANCES, STEPS = 40, 15  # of 8, in three epochs
GRACE = 20  # seconds; Kubernetes gives 30


def _spec(model: str) -> RoundSpec:
    """Everything that draws random numbers, and a phase boundary at step 5."""
    first = {"lm_head": 1e-3, "projector": 1e-3} if model == "qwen3-asr" else {"lm_head": 1e-3}
    return spec_of(
        model,
        phases=[{"name": "B", "epochs": 1, "rates": first}, {"name": "A", "epochs": 2, "rates": {"all": 1e-3}}],
        augment={
            "specaugment": {"freq": [1, 8], "time": [1, 10]},
            "speed": [0.9, 1.0, 1.1],
            "noise": {"snr": [10, 20], "share": 0.5},
        },
        evaluate={"every_steps": 10, "utterances": 4},
        keep={"every_steps": 2, "last": 3, "best": 1},
    )


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp(model)
    _to_the_end(model, folder)
    return folder


def test_killed_and_resumed_is_bit_equal(model: str, whole: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(len(model))
    for at in sorted(random.choice(np.arange(1, STEPS - 2), size=3, replace=False).tolist()):
        _until(model, tmp_path, at, signal.SIGKILL)
    _to_the_end(model, tmp_path)
    assert _curve(tmp_path) == _curve(whole)
    for name, tensor in _weights(whole).items():
        assert torch.equal(tensor, _weights(tmp_path)[name]), name


def test_a_resume_that_draws_anew_is_seen(model: str, whole: Path, tmp_path: Path) -> None:
    """The twin: after the kill, augmentation and batches come from another seed."""
    _until(model, tmp_path, 8, signal.SIGKILL)
    _to_the_end(model, tmp_path, seed=8)
    assert _curve(tmp_path) != _curve(whole)
    assert any(not torch.equal(tensor, _weights(tmp_path)[name]) for name, tensor in _weights(whole).items())


def test_sigterm_saves_and_ends_with_its_code(model: str, whole: Path, tmp_path: Path) -> None:
    asked = time.monotonic()
    child = _until(model, tmp_path, 7, signal.SIGTERM)
    assert child.exitcode == Preempted.exit_code
    assert time.monotonic() - asked < GRACE + 60  # its start is counted too
    last = (tmp_path / "train/latest").read_text().strip()
    assert read_checkpoint(tmp_path / "train/checkpoints" / last, thorough=True)
    _to_the_end(model, tmp_path)
    assert _curve(tmp_path) == _curve(whole)


def test_a_torn_checkpoint_is_never_picked(model: str, whole: Path, tmp_path: Path) -> None:
    """Whichever of its files is cut short: weights, configuration, tokenizer, optimizer."""
    folder = shutil.copytree(whole / "train/checkpoints", tmp_path / "checkpoints")
    newest = newest_checkpoint(folder, "test")
    assert newest is not None and newest.step == STEPS
    files = [path for path in newest.path.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        before = newest_checkpoint(folder, "test")
        assert before is not None and before.step < STEPS, path.name
        path.write_bytes(content)
    assert newest_checkpoint(folder, "test") == newest


def test_another_number_of_ranks_in_the_middle_of_an_epoch(model: str, whole: Path, tmp_path: Path) -> None:
    """Two ranks to step 8, three to step 12, one to the end: the curve of one process."""
    family = family_of(_spec(model).model)
    family.prepare(_spec(model).model, WORDS, 7, tmp_path / "base")
    on_ranks(2, _train_to, model, tmp_path, 8, timeout=150)
    on_ranks(3, _train_to, model, tmp_path, 12, timeout=150)
    _to_the_end(model, tmp_path)
    losses, tokens = _losses(tmp_path)
    expected, expected_tokens = _losses(whole)
    assert tokens == expected_tokens
    assert losses == pytest.approx(expected, rel=1e-4)


def test_no_utterance_is_lost_or_doubled(model: str) -> None:
    """Ids, not counts: two ranks for eight steps, three for four, one for the rest."""
    spec, data = _spec(model), utterances(UTTERANCES)
    taken: list[list[int]] = [[] for _ in range(STEPS)]
    for first, last, world_size in ((0, 8, 2), (8, 12, 3), (12, STEPS, 1)):
        for rank in range(world_size):
            for order in Orders(spec, data, rank, world_size, 6.0).from_step(first, last):
                taken[order.step] += order.utterances
    single = [sorted(batch) for batch in _batches(spec, data)]
    assert [sorted(batch) for batch in taken] == single
    for epoch in range(3):
        seen = Counter(one for batch in taken[5 * epoch : 5 * epoch + 5] for one in batch)
        assert seen == Counter(range(UTTERANCES))


def _batches(spec: RoundSpec, data: Sequence[Any]) -> list[list[int]]:
    orders = Orders(spec, data, 0, 1, 1000.0)
    return [batch.tolist() for epoch in range(3) for batch in orders.epoch(epoch)[0]]


def _to_the_end(model: str, folder: Path, seed: int = 7) -> None:
    child = _child(model, folder, seed)
    child.join(150)
    assert child.exitcode == 0


def _until(model: str, folder: Path, step: int, number: int) -> Any:
    child = _child(model, folder)
    metrics = folder / "train/metrics.jsonl"
    deadline = time.monotonic() + 150
    while not metrics.exists() or metrics.read_bytes().count(b'"kind":"train"') < step:
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, number)
    child.join(60)
    return child


def _child(model: str, folder: Path, seed: int = 7) -> Any:
    child = FORK.Process(target=_run, args=(model, folder, seed))
    child.start()
    return child


def _run(model: str, folder: Path, seed: int) -> None:
    try:
        _train(model, folder, STEPS, seed, workers=1)
    except Preempted as error:
        os._exit(error.exit_code)
    os._exit(0)


def _train_to(model: str, folder: Path, last: int) -> None:
    _train(model, folder, last)


def _train(model: str, folder: Path, last: int, seed: int = 7, workers: int = 0) -> None:
    """Train until step `last` is saved, as after SIGTERM."""
    spec = _spec(model).model_copy(update={"seed": seed})
    work = work_in(folder, count=UTTERANCES, workers=workers, spec=spec, family=family_of(spec.model))
    with processes() as ranks, _ends_after(last):
        train(work, ranks)


class _ends_after:
    """The engine stops as after SIGTERM when step `last` was taken, on every rank at once."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.restore: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        from caspi.training.engine import Run

        taken = Run.take_step

        def take_step(run: Any, *arguments: Any) -> None:
            taken(run, *arguments)
            run.asked = run.asked or run.step == self.last

        Run.take_step = take_step  # type: ignore[method-assign]
        self.restore = lambda: setattr(Run, "take_step", taken)

    def __exit__(self, kind: Any, *_: Any) -> bool:
        self.restore()
        return bool(kind is Preempted and self.last < STEPS)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / f"train/checkpoints/step-{STEPS:06d}/model.safetensors")


def _curve(folder: Path) -> list[dict[str, Any]]:
    """Steps and scores of metrics.jsonl without what a clock wrote."""
    clock = ("seconds", "utterances_per_second", "waited")
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["kind"] in ("train", "dev")]
    return [{name: value for name, value in line.items() if name not in clock} for line in kept]


def _losses(folder: Path) -> tuple[list[float], list[int]]:
    steps = [line for line in _curve(folder) if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    return [line["loss"] for line in steps], [line["tokens"] for line in steps]
