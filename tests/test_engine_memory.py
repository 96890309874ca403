"""Memory: the worst micro-batch first, what happens when memory runs out, and what is never held at all. CUDA's own
error is raised by a network that is given too much, in the passes where a GPU would raise it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from caspi.errors import Preempted, StageFailed
from caspi.families.base import Family
from caspi.families.qwen3_asr import QWEN3_ASR
from caspi.training.batches import padded_seconds
from caspi.training.data import Orders
from caspi.training.distributed import ALLOCATOR, Processes, processes
from caspi.training.engine import Run, train
from caspi.training.memory_ladder import lowered, remember, remembered, worst
from caspi.training.optimizer import PhaseOptimizer
from caspi.training.phases import PhasePlan
from tests.ranks import on_ranks
from tests.toy_family import HOP, ToyFamily, ToyModel, ToyNetwork
from tests.training_work import WORDS, Tones, spec_of, trained_by, utterances, work_in

CPU = torch.device("cpu")


# --- a GPU that is too small


class Cramped(ToyNetwork):
    """Runs out of memory in training when a micro-batch has more than `seconds`, once `passes` have fitted."""

    def __init__(self, seconds: float, passes: int, where: str) -> None:
        super().__init__()
        self.seconds, self.passes, self.where = seconds, passes, where
        self.seen: list[float] = []

    def forward(self, features: torch.Tensor, frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(features, frames, labels)
        size = features.shape[0] * features.shape[1] * HOP / 16_000
        self.seen.append(size)
        short = size > self.seconds and len(self.seen) > self.passes
        if short and self.where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.06 GiB.")
        loss = super().forward(features, frames, labels)
        return _Heavy.apply(loss) if short else loss


class _Heavy(torch.autograd.Function):
    """Fits forward, and not backward."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


class CrampedFamily(ToyFamily):
    """On one of the processes, as a rule."""

    def __init__(self, seconds: float, passes: int = 0, where: str = "forward", rank: str = "0") -> None:
        super().__init__()
        self.seconds, self.passes, self.where, self.rank = seconds, passes, where, rank

    def load(self, folder: Path, spec: Any, device: torch.device) -> ToyModel:
        seconds = self.seconds if os.environ.get("RANK", "0") == self.rank else 1e9
        network = Cramped(seconds, self.passes, self.where)
        network.load_state_dict(super().load(folder, spec, device).network.state_dict())
        return ToyModel(network, device)


# --- invariant 5: the worst first


def test_the_worst_micro_batch_is_found(tmp_path: Path) -> None:
    data, spec = utterances(200), spec_of(augment={"speed": [0.9, 1.0, 1.1]}, global_batch=32)
    for rank in range(2):
        orders = Orders(spec, data, rank, 2, 12.0)
        found = worst(orders, 3, 19)
        sizes = []
        for order in orders.from_step(3, 19):
            assert 3 <= order.step < 19
            lengths = np.array([data[i].seconds / s for i, s in zip(order.utterances, order.speeds, strict=True)])
            sizes.append(padded_seconds(lengths, np.arange(len(lengths))))
        assert found.padded == pytest.approx(max(sizes)) and max(sizes) > 1.05 * sorted(sizes)[len(sizes) // 2]


def test_it_runs_before_the_first_step_of_each_phase(tmp_path: Path) -> None:
    phases = [{"name": n, "epochs": 1, "rates": {g: 1e-3}} for n, g in (("B", "projector"), ("A", "all"))]
    spec = spec_of(phases=phases, global_batch=8)
    seen = on_ranks(1, _sizes_seen, tmp_path, spec)[0]
    starts = [0, len(seen) // 2]
    for start in starts:
        assert seen[start] == max(seen[start : start + len(seen) // 2])
    assert len(seen) == sum(1 for _ in Orders(spec, utterances(60), 0, 1, 6.0).from_step(0, 16)) + 2


def test_a_rehearsal_changes_nothing(tmp_path: Path) -> None:
    """Bit for bit, with dropout; the twin is a rehearsal that leaves its gradient, or draws from the same numbers."""
    for world_size in (1, 2):
        curves = {
            how: on_ranks(world_size, _rehearsed, _prepared(tmp_path / f"{world_size}-{how}"), how)[0] for how in HOW
        }
        assert curves["as it is"] == curves["none"]
        assert curves["a step is taken"] != curves["none"]


HOW = ("as it is", "none", "a step is taken")


def _rehearsed(folder: Path, how: str) -> list[float]:
    rehearse = Run.rehearse
    if how == "none":
        Run.rehearse = lambda self, phase, optimizer: None  # type: ignore[method-assign]
    if how == "a step is taken":

        def moved(self: Run, phase: Any, optimizer: Any) -> None:
            optimizer.forget = lambda: optimizer.update(0.1)
            rehearse(self, phase, optimizer)

        Run.rehearse = moved  # type: ignore[method-assign]
    with processes() as ranks:
        train(work_in(folder, count=24, family=ToyFamily(dropout=0.1)), ranks)
    return [line["loss"] for line in _lines(folder, "train", "dev")]


def _sizes_seen(folder: Path, spec: Any) -> list[float]:
    family, found = CrampedFamily(1e9), []
    load = family.load
    family.load = lambda *arguments: found.append(load(*arguments)) or found[-1]  # type: ignore[func-returns-value]
    with processes() as ranks:
        train(work_in(folder, spec=spec, family=family), ranks)
    seen: list[float] = found[0].network.seen
    return seen


# --- invariant 5: the ladder


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run that has room."""
    folder = tmp_path_factory.mktemp("room")
    trained_by(work_in(folder, count=40))
    return [line["loss"] for line in _lines(folder, "train", "dev")]


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("world_size", "rank"), [(1, "0"), (2, "0"), (2, "1")])
def test_out_of_memory_the_cap_shrinks_and_the_curve_stays(
    where: str, world_size: int, rank: str, right: list[float], tmp_path: Path
) -> None:
    """One process of several runs short, in the middle of training: all take the step again, in smaller pieces."""
    family = CrampedFamily(4.0, passes=7, where=where, rank=rank)
    on_ranks(world_size, _train, _prepared(tmp_path), family)
    assert [line["loss"] for line in _lines(tmp_path, "train", "dev")] == pytest.approx(right, abs=1e-5)
    shrunk = _lines(tmp_path, "memory")
    assert [(line["before"], line["padded_seconds"]) for line in shrunk] == [(6.0, 4.5), (4.5, 3.375)]
    assert shrunk[0]["step"] > 0
    steps = [line["step"] for line in _lines(tmp_path, "train")]
    assert steps == list(range(1, len(steps) + 1))


def test_an_estimate_that_was_too_bold_shows_before_the_first_step(right: list[float], tmp_path: Path) -> None:
    trained_by(work_in(tmp_path, count=40, family=CrampedFamily(4.0)))
    assert [line["step"] for line in _lines(tmp_path, "memory")] == [0, 0]
    assert [line["loss"] for line in _lines(tmp_path, "train", "dev")] == pytest.approx(right, abs=1e-5)


def test_a_restart_does_not_climb_down_again(tmp_path: Path) -> None:
    spec = spec_of(phases=[{"name": "full", "epochs": 1, "rates": {"all": 1e-3}}])
    first = trained_by(work_in(tmp_path, family=CrampedFamily(4.0), spec=spec))
    assert first.figures["padded_seconds"] == 3.375
    again = work_in(tmp_path, family=CrampedFamily(4.0), spec=spec)
    for path in again.folder.glob("checkpoints/*/checkpoint.json"):
        path.unlink()
    assert trained_by(again).figures["padded_seconds"] == 3.375
    assert len(_lines(tmp_path, "memory")) == 2  # of the first run
    roomy = trained_by(replace(again, max_padded_seconds=8.0, identity="elsewhere", family=ToyFamily()))
    assert roomy.figures["padded_seconds"] == 8.0  # another cap was planned: other machines


def test_one_utterance_that_does_not_fit_says_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"one utterance of 1\.\d s alone does not fit in memory; keep shorter ones"):
        trained_by(work_in(tmp_path, family=CrampedFamily(0.5)))
    assert _lines(tmp_path, "train") == []


def test_the_steps_of_the_ladder(tmp_path: Path) -> None:
    assert lowered(100.0, 30.0) == 75.0
    assert lowered(35.0, 30.0) == 30.0
    with pytest.raises(StageFailed):
        lowered(30.0, 30.0)
    assert remembered(tmp_path, 100.0) == 100.0
    remember(tmp_path, 100.0, 75.0)
    assert (remembered(tmp_path, 100.0), remembered(tmp_path, 90.0)) == (75.0, 90.0)
    for torn in ("{", "{}", "[]", '{"planned": 100.0}', '{"planned": 100.0, "padded_seconds": "x"}'):
        (tmp_path / "memory.json").write_text(torn)
        assert remembered(tmp_path, 100.0) == 100.0


def test_sharded_it_starts_again_with_less(right: list[float], tmp_path: Path) -> None:
    """The others wait for the one that ran short in the middle of a pass: it ends, and the next start has room."""
    for cap in (4.5, 3.375):
        with pytest.raises(
            AssertionError, match=r"Preempted: (out of memory after step \d+: micro-batches of|rank \d lost)"
        ):
            on_ranks(2, _train_sharded, _prepared(tmp_path), CrampedFamily(4.0, passes=7, rank="1"))
        assert json.loads((tmp_path / "train/memory.json").read_text())["padded_seconds"] == cap
    on_ranks(2, _train_sharded, _prepared(tmp_path), CrampedFamily(4.0, passes=7, rank="1"))
    assert [line["loss"] for line in _lines(tmp_path, "train", "dev")] == pytest.approx(right, abs=1e-5)
    assert Preempted.exit_code == 75  # start it again


def _prepared(folder: Path) -> Path:
    """Processes of a test begin at once; a stage lets its leader be first."""
    ToyFamily().prepare(None, WORDS, spec_of().seed, folder / "base")
    return folder


def _train(folder: Path, family: Family) -> None:
    with processes() as ranks:
        train(work_in(folder, count=40, family=family), ranks)


def _train_sharded(folder: Path, family: Family) -> None:
    with processes() as ranks:
        train(replace(work_in(folder, count=40, family=family), strategy="fsdp"), ranks)


def _lines(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] in kinds]


# --- what is never held


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = spec_of()
    return QWEN3_ASR.prepare(spec.model, WORDS, spec.seed, tmp_path_factory.mktemp("qwen"))


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any one tensor had whose last dimension is the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.numbers = vocabulary, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("naive", [False, True])
def test_logits_of_a_whole_batch_are_never_held(naive: bool, base: Path) -> None:
    """Neither forward nor backward holds batch x time x vocabulary in fp32, which ran the first Hebrew run out of
    memory. The twin does."""
    model = QWEN3_ASR.load(base, spec_of().model, CPU)
    batch = model.collate([model.example(Tones().read(u.audio), u.text) for u in utterances(6)])
    vocabulary = int(model.network.thinker.lm_head.weight.shape[0])
    if naive:
        head, decode = model.network.thinker.lm_head, model.network._decode
        model.network._decode = lambda *given: decode(*given) + 0 * head(decode(*given)).sum()
    with Largest(vocabulary) as largest:
        model.network(**batch.tensors).backward()
    everywhere = batch.tensors["input_ids"].numel() * vocabulary
    assert (largest.numbers >= everywhere) == naive
    held = max(batch.tokens * vocabulary, model.network.thinker.lm_head.weight.numel())  # its transpose counts too
    assert naive or largest.numbers == held


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_over_a_frozen_bottom_trains_the_top(reentrant: bool, base: Path) -> None:
    """transformers' own default (reentrant) gives thawed top layers of the encoder no gradient, and says nothing."""
    model = QWEN3_ASR.load(base, spec_of().model, CPU)
    PhaseOptimizer(model, TOP, spec_of().train.optimizer, "fp32", Processes(0, 1, CPU))
    model.enable_recompute()
    if reentrant:
        model._outer.gradient_checkpointing_enable({"use_reentrant": True})
    batch = model.collate([model.example(Tones().read(u.audio), u.text) for u in utterances(3)])
    model.network.train()(**batch.tensors).backward()
    moved = {
        name: any(p.grad is not None and p.grad.any() for p in group) for name, group in model.groups(NAMES).items()
    }
    assert moved == {"audio_top:1": not reentrant, "projector": True}


NAMES = ["audio_top:1", "projector"]
TOP = PhasePlan("top", 0, 1, 0, 1, dict.fromkeys(NAMES, 1e-3))


# --- the allocator

SAYS = """
import os
from caspi.training.distributed import ALLOCATOR, Processes, processes
with processes():
    import torch
    print(torch._C._accelerator_getAllocatorSettings())
"""


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_ALLOC_CONF": ""}, ""),
    ],
)
def test_the_allocator_is_set_in_a_training_process_unless_the_user_has(environment: dict[str, str], said: str) -> None:
    """What torch's allocator itself read, in a process that begins as a stage does."""
    inherited = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    done = subprocess.run(
        [sys.executable, "-c", SAYS], env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.stdout.strip() == said, done.stderr
