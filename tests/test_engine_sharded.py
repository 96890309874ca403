"""Weights spread over processes (FSDP2) change nothing but where they lie: loss, gradients, curves, checkpoints and
scores are those of whole weights, for any number of processes, also for a process that has nothing to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from caspi.families.base import Family, Model
from caspi.files import file_digest
from caspi.records.results import DevScore
from caspi.spec import RoundSpec
from caspi.spec.models import CtcModel
from caspi.training.data import Orders, Speech, step_batches
from caspi.training.distributed import Processes, processes
from caspi.training.engine import train
from caspi.training.evaluation import Evaluation
from caspi.training.optimizer import PhaseOptimizer
from caspi.training.phases import PhasePlan
from caspi.training.sharding import gathered, is_sharded, shard, whole, whole_network
from tests.ranks import on_ranks
from tests.toy_family import ToyFamily
from tests.training_work import WORDS, Tones, spec_of, utterances, work_in

ALL = PhasePlan("all", 0, 1, 0, 1, {"all": 1e-3})
SPLITS = [(24, 60.0), (24, 3.1), (2, 60.0)]  # (utterances, cap): one micro-batch, several, fewer than processes
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A family, a model of it, and what its phases move: `first`, then `thawed` too, never `frozen`."""

    family: Family
    model: Any = spec_of().model
    first: tuple[str, ...] = ("projector", "lm_head")
    thawed: str = "audio_top:1"
    frozen: str = "llm_top:1"

    def spec(self, **train: Any) -> RoundSpec:
        return spec_of(**train).model_copy(update={"model": self.model})

    def base(self, folder: Path) -> Path:
        return self.family.prepare(self.model, WORDS, self.spec().seed, folder)

    def load(self, folder: Path) -> Any:
        return self.family.load(folder, self.model, CPU)


def _case(name: str) -> Case:
    from caspi.families.ctc import CTC
    from caspi.families.qwen3_asr import QWEN3_ASR

    if name in ("toy", "qwen3-asr"):
        return Case(ToyFamily() if name == "toy" else QWEN3_ASR)
    return Case(CTC, CtcModel(family="ctc", base=name), ("lm_head",), "audio_top:1", "front")


@pytest.fixture(scope="module", params=["toy", "qwen3-asr", "tiny"])
def case(request: pytest.FixtureRequest) -> Case:
    return _case(request.param)


@pytest.fixture(scope="module")
def base(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.base(tmp_path_factory.mktemp("base"))


# --- the right loss


def test_loss_and_gradient_are_those_of_whole_weights(case: Case, base: Path) -> None:
    references = {count: _reference(case, base, count) for count, _ in SPLITS}
    for world_size in (2, 3):
        for (count, cap), (found_loss, found) in on_ranks(world_size, _by_shards, case, base)[0].items():
            loss, gradient = references[count]
            assert found_loss == pytest.approx(loss, abs=1e-5), (world_size, count, cap)
            assert found.keys() == gradient.keys()
            assert _off(found, gradient) < 1e-5, (world_size, count, cap)


def test_a_mean_over_processes_instead_of_a_sum_is_caught(case: Case, base: Path) -> None:
    """The twin: FSDP's own default."""
    answers = on_ranks(2, _by_shards, case, base, "mean")[0]
    assert min(_off(found, _reference(case, base, count)[1]) for (count, _), (_, found) in answers.items()) > 0.1


def test_a_process_holds_its_share_alone(case: Case, base: Path) -> None:
    """Of weights, gradients and moments; and tied tensors stay tied."""
    model = case.load(base)
    total = sum(parameter.numel() for parameter in model.network.parameters())
    shares = on_ranks(2, _shares, case, base)
    for kind in ("weights", "gradients", "moments"):
        assert all(share[kind] < 0.6 * total * (2 if kind == "moments" else 1) for share in shares), kind
    assert [share["tied"] for share in shares] == [model.tied()] * 2


def _reference(case: Case, base: Path, count: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The whole batch at once, without any of the engine."""
    data, model = utterances(count), case.load(base)
    batch = model.collate([model.example(Tones().read(u.audio), u.text) for u in data])
    loss = model.network.train()(**batch.tensors) / batch.tokens
    loss.backward()
    return loss.item(), _gradients(model)


def _by_shards(
    case: Case, base: Path, fault: str = ""
) -> dict[tuple[int, float], tuple[float, dict[str, torch.Tensor]]]:
    answers = {}
    with processes() as ranks:
        model = _sharded(case, base, ranks)
        if fault == "mean":
            for module in model.network.modules():
                if isinstance(module, FSDPModule):
                    module.set_gradient_divide_factor(ranks.world_size)
        optimizer = PhaseOptimizer(model, ALL, spec_of().train.optimizer, "fp32", ranks)
        for count, cap in SPLITS:
            loss = _accumulated(optimizer, model, ranks, count, cap)
            answers[count, cap] = (loss, _gradients(model))
    return answers


def _accumulated(optimizer: PhaseOptimizer, model: Model, ranks: Processes, count: int, cap: float) -> float:
    spec, data = spec_of(global_batch=24), utterances(count)
    orders = Orders(spec, data, ranks.rank, ranks.world_size, cap)
    (micro_batches,) = step_batches(Speech(spec, data, Tones(), model), orders, 0, 1, 0, ranks)
    (tokens,) = ranks.sum(sum(m.batch.tokens for m in micro_batches if m.batch))
    (loss,) = ranks.sum(optimizer.accumulate(micro_batches, tokens))
    return loss


def _sharded(case: Case, base: Path, ranks: Processes, precision: str = "fp32") -> Any:
    model = case.load(base)
    model.enable_recompute()  # as on every GPU: blocks are gathered again to be recomputed
    shard(model, precision, ranks)
    return model


def _gradients(model: Model) -> dict[str, torch.Tensor]:
    return whole({name: p.grad for name, p in model.network.named_parameters() if p.grad is not None}, keep=True)


def _off(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    apart = sum(float((found[name] - right[name]).square().sum()) for name in right)
    return (apart / sum(float(tensor.square().sum()) for tensor in right.values())) ** 0.5


def _shares(case: Case, base: Path) -> dict[str, Any]:
    with processes() as ranks:
        model = _sharded(case, base, ranks)
        optimizer = PhaseOptimizer(model, ALL, spec_of().train.optimizer, "fp32", ranks)
        _accumulated(optimizer, model, ranks, 24, 60.0)
        optimizer.update(1.0)
        moments = [state[moment] for state in optimizer.adamw.state.values() for moment in ("exp_avg", "exp_avg_sq")]
        return {
            "weights": _held(model.network.parameters()),
            "gradients": _held(p.grad for p in model.network.parameters()),
            "moments": _held(moments),
            "tied": model.tied(),
        }


def _held(tensors: Any) -> int:
    return sum(tensor.to_local().numel() for tensor in tensors)


# --- checkpoints, phases, scores

JOURNEY = [(1, "ddp", 2), (2, "fsdp", 5), (3, "fsdp", 7), (2, "ddp", 8)]
"""(processes, strategy, the step whose checkpoint the next leg goes on from); the phase ends at step 4 of 8."""


def test_any_strategy_and_number_of_processes_goes_on_from_a_checkpoint(case: Case, tmp_path: Path) -> None:
    case.base(tmp_path / "whole" / "base")
    on_ranks(1, _train, case, tmp_path / "whole", "ddp")
    shutil.copytree(tmp_path / "whole" / "base", tmp_path / "hops" / "base")
    for world_size, strategy, last in JOURNEY:
        on_ranks(world_size, _train, case, tmp_path / "hops", strategy)
        _forget_after(tmp_path / "hops", last)
    right, found = (_lines(tmp_path / name) for name in ("whole", "hops"))
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in right], rel=1e-4)
    assert [line.get("wer") for line in found] == [line.get("wer") for line in right]


def test_a_journey_without_the_moments_is_another(tmp_path: Path) -> None:
    """The twin: the comparison sees a leg that begins with a fresh AdamW."""
    case = _case("toy")
    case.base(tmp_path / "base")
    on_ranks(1, _train, case, tmp_path, "ddp")
    right = [line["loss"] for line in _lines(tmp_path)]
    _forget_after(tmp_path, 5)
    on_ranks(2, _train_without_moments, case, tmp_path)
    assert [line["loss"] for line in _lines(tmp_path)] != pytest.approx(right, rel=1e-4)


def test_frozen_shards_do_not_move_and_thawed_ones_do(case: Case, tmp_path: Path) -> None:
    base = case.base(tmp_path / "base")
    on_ranks(2, _train, case, tmp_path, "fsdp")
    folders = [base, *(tmp_path / f"train/checkpoints/step-{step:06d}" for step in (4, 8))]
    before, boundary, after = (_groups(case, folder) for folder in folders)
    moved = {**dict.fromkeys(case.first, True), case.frozen: False}
    assert _moved(before, boundary) == {**moved, case.thawed: False}
    assert _moved(boundary, after) == {**moved, case.thawed: True}


def test_adapters_are_sharded_too(tmp_path: Path) -> None:
    """LoRA, over a checkpoint, sharded and not: the same losses, and the same merged weights but for rounding."""
    case, curves = _case("qwen3-asr"), []
    for name, world_size, strategy in (("whole", 1, "ddp"), ("shards", 2, "fsdp")):
        case.base(tmp_path / name / "base")
        for last in (3, 8):
            on_ranks(world_size, _train, case, tmp_path / name, strategy, {"rank": 2, "targets": ["q_proj", "v_proj"]})
            _forget_after(tmp_path / name, last)
        curves.append([line["loss"] for line in _lines(tmp_path / name)])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    some, others = (
        load_file(tmp_path / name / "train/checkpoints/step-000008/model.safetensors") for name in ("whole", "shards")
    )
    assert some.keys() == others.keys()
    assert max(float((some[name] - others[name]).abs().max()) for name in some) < 1e-4


def test_scores_are_those_of_whole_weights_at_any_pace(case: Case, base: Path) -> None:
    """Five utterances on three processes, one of which has fewer batches and so takes fewer steps than the others."""
    alone = on_ranks(1, _score, case, base)[0]
    assert on_ranks(3, _score, case, base) == [alone] * 3


def test_half_precision_travels_and_means_the_same(case: Case, base: Path) -> None:
    """bf16 blocks under autocast, against whole fp32 weights under autocast: the same to the rounding of norms."""
    (whole_weights,), shards = on_ranks(1, _half, case, base), on_ranks(2, _half, case, base)
    assert shards[0] == pytest.approx(shards[1])
    assert shards[0] == pytest.approx(whole_weights, rel=1e-2)


def test_norms_over_the_batch_are_sharded_too(tmp_path: Path) -> None:
    """Parakeet's batch norms, which no other family has: in fp32, in bf16, and for a process with nothing to do."""
    case = _case("tiny-parakeet")
    base = case.base(tmp_path)
    test_loss_and_gradient_are_those_of_whole_weights(case, base)
    test_half_precision_travels_and_means_the_same(case, base)


def test_what_is_saved_is_whole_and_the_shards_are_back_afterwards(case: Case, base: Path, tmp_path: Path) -> None:
    """Byte for byte what whole weights save: whoever loads that (qwen_asr, transformers) loads this."""
    case.load(base).save(tmp_path)
    right = {path.name: file_digest(path) for path in tmp_path.iterdir()}
    assert on_ranks(2, _saved, case, base, tmp_path) == [True, True]
    assert {path.name: file_digest(path) for path in tmp_path.iterdir()} == right


def _work(case: Case, folder: Path, strategy: Any, lora: Any = None) -> Any:
    first = dict.fromkeys(case.first, 5e-3)
    phases = [
        {"name": "B", "epochs": 2, "rates": {"lora": 5e-3} if lora else first},
        {"name": "A", "epochs": 2, "rates": {"lora": 5e-3} if lora else {**first, case.thawed: 5e-3}},
    ]
    spec = case.spec(
        phases=phases,
        global_batch=6,
        keep={"every_steps": 1, "last": 99},
        evaluate={"every_steps": 4, "utterances": 5},
        **({"lora": lora} if lora else {}),
    )
    return replace(work_in(folder, count=11, spec=spec, family=case.family, cap=4.0), strategy=strategy)


def _train(case: Case, folder: Path, strategy: str, lora: Any = None) -> None:
    with processes() as ranks:
        train(_work(case, folder, strategy, lora), ranks)


def _train_without_moments(case: Case, folder: Path) -> None:
    PhaseOptimizer.restore = lambda self, state: None  # type: ignore[method-assign]
    _train(case, folder, "fsdp")


def _forget_after(folder: Path, step: int) -> None:
    for path in (folder / "train/checkpoints").glob("step-*"):
        if path.name > f"step-{step:06d}":
            shutil.rmtree(path)


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] in ("train", "dev")]


def _groups(case: Case, folder: Path) -> dict[str, list[torch.Tensor]]:
    groups = case.load(folder).groups([*case.first, case.thawed, case.frozen])
    return {name: [p.detach().clone() for p in parameters] for name, parameters in groups.items()}


def _moved(before: dict[str, list[torch.Tensor]], after: dict[str, list[torch.Tensor]]) -> dict[str, bool]:
    return {name: not _equal(old, after[name]) for name, old in before.items()}


def _equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def _score(case: Case, base: Path) -> DevScore:
    spec = spec_of(evaluate={"every_steps": 1, "utterances": 5})
    with processes() as ranks:
        model = _sharded(case, base, ranks) if ranks.world_size > 1 else case.load(base)
        if ranks.world_size > 1:
            optimizer = PhaseOptimizer(model, ALL, spec.train.optimizer, "fp32", ranks)
            _accumulated(optimizer, model, ranks, 24, 60.0)
        evaluation = Evaluation(spec, utterances(5, seed=1), Tones(), ranks, 1.5, 0)
        with gathered(model.network):
            return evaluation.score(model, 1, 1.0)


def _half(case: Case, base: Path) -> list[float]:
    with processes() as ranks:
        several = ranks.world_size > 1
        model = _sharded(case, base, ranks, "bf16") if several else case.load(base)
        optimizer = PhaseOptimizer(model, ALL, spec_of().train.optimizer, "bf16", ranks)
        losses = []
        for _ in range(3):
            losses.append(_accumulated(optimizer, model, ranks, 24, 60.0))
            optimizer.update(1.0)
        return losses


def _saved(case: Case, base: Path, folder: Path) -> bool:
    with processes() as ranks:
        model = _sharded(case, base, ranks)
        before = dict(model.network.named_parameters(remove_duplicate=False))
        with whole_network(model.network, keep=ranks.leader):
            if ranks.leader:
                model.save(folder)
        after = dict(model.network.named_parameters(remove_duplicate=False))
        return is_sharded(model.network) and all(after[name] is before[name] for name in before)
