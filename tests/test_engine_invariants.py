"""The engine's promises, for every family: the loss of a global batch does not depend on how it is split, labels
are the targets, phases move what they should, and ranks stay the same to the bit. Each has the fault it catches."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from caspi.families import family_of
from caspi.families.base import Batch, Example, Family, Model
from caspi.spec import RoundSpec
from caspi.training.data import Orders, Speech, step_batches
from caspi.training.distributed import identical, processes
from caspi.training.engine import train
from caspi.training.optimizer import PhaseOptimizer
from caspi.training.phases import PhasePlan
from tests.ranks import on_ranks
from tests.toy_family import ToyFamily
from tests.training_work import MODELS, WORDS, Tones, spec_of, utterances, work_in

CAPS = (60.0, 7.0, 3.1, 1.7)  # one micro-batch of 24, then about 4, 8 and 16
ALL = PhasePlan("all", 0, 1, 0, 1, {"all": 1e-3})


@pytest.fixture(scope="module", params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    """What is trained: `ctc` reads waveforms, `parakeet` spectrograms, and has norms over the batch."""
    return str(request.param)


@pytest.fixture(scope="module")
def family(kind: str) -> Family:
    return ToyFamily() if kind == "toy" else family_of(spec_of(kind).model)


@pytest.fixture(scope="module")
def base(kind: str, family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = spec_of(kind)
    letters = sorted({letter for word in WORDS for letter in word})  # a word that is one piece would be one label
    return family.prepare(spec.model, letters, spec.seed, tmp_path_factory.mktemp(kind))


# --- invariant 1: the right loss


def test_loss_and_gradient_do_not_depend_on_the_split(kind: str, family: Family, base: Path) -> None:
    loss, gradient = _reference(kind, family, base)
    for world_size in (1, 2, 3):
        for split, (found_loss, found) in on_ranks(world_size, _by_engine, kind, family, base)[0].items():
            assert found_loss == pytest.approx(loss, abs=1e-5), (world_size, split)
            difference = float((found - gradient).norm() / gradient.norm())
            assert difference < 1e-5, (world_size, split, difference)


@pytest.mark.parametrize("fault", ["mean of each micro-batch", "sum, never divided", "forgotten world size"])
def test_the_faults_it_catches(fault: str, kind: str, family: Family, base: Path) -> None:
    _, gradient = _reference(kind, family, base)
    answers = on_ranks(2, _by_engine, kind, family, base, fault)[0]
    off = [float((found - gradient).norm() / gradient.norm()) for _, found in answers.values()]
    assert max(off) > 1e-2


def _reference(kind: str, family: Family, base: Path) -> tuple[float, torch.Tensor]:
    """The whole batch at once, without any of the engine."""
    spec, data = spec_of(kind, global_batch=24), utterances(24)
    model = family.load(base, spec.model, torch.device("cpu"))
    batch = model.collate([model.example(Tones().read(u.audio), u.text) for u in data])
    loss = model.network.train()(**batch.tensors) / batch.tokens
    loss.backward()
    return loss.item(), _gradient(model)


def _by_engine(
    kind: str, family: Family, base: Path, fault: str = ""
) -> dict[tuple[float, int], tuple[float, torch.Tensor]]:
    spec, data = spec_of(kind, global_batch=24), utterances(24)
    answers = {}
    with processes() as ranks:
        model = family.load(base, spec.model, torch.device("cpu"))
        if fault == "mean of each micro-batch":
            model.network.forward = _mean_of(model.network.forward)  # type: ignore[method-assign]
        optimizer = PhaseOptimizer(model, ALL, spec.train.optimizer, "fp32", ranks)
        for cap in CAPS:
            orders = Orders(spec, data, ranks.rank, ranks.world_size, cap)
            (micro_batches,) = step_batches(Speech(spec, data, Tones(), model), orders, 0, 1, 0, ranks)
            (tokens,) = ranks.sum(sum(m.batch.tokens for m in micro_batches if m.batch))
            divisor = {
                "mean of each micro-batch": len(micro_batches) * ranks.world_size,
                "sum, never divided": 1,
                "forgotten world size": tokens * ranks.world_size,
            }.get(fault, tokens)
            (loss,) = ranks.sum(optimizer.accumulate(micro_batches, divisor))
            assert cap < 60 or len(micro_batches) == 1
            answers[cap, len(micro_batches)] = (loss, _gradient(model))
    return answers


def _mean_of(forward: Any) -> Any:
    return lambda labels, **rest: forward(labels=labels, **rest) / (labels != -100).sum()


def _gradient(model: Model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.groups(["all"])["all"]]).clone()


# --- invariant 2: the right labels


def test_labelled_tokens_are_target_and_end_in_every_row(kind: str, family: Family, base: Path) -> None:
    model = family.load(base, spec_of(kind).model, torch.device("cpu"))
    examples = [model.example(Tones().read(u.audio), u.text) for u in utterances(12)]
    assert len({len(example.labels) for example in examples}) > 1
    batch = model.collate(examples)
    assert batch.tokens == sum(len(example.labels) for example in examples)
    assert _wrong_rows(batch, examples) == []


def test_one_labelled_token_too_many_is_caught(kind: str, family: Family, base: Path) -> None:
    """What upstream did to every row that is not the longest: the prompt's last tokens were trained on too."""
    model = family.load(base, spec_of(kind).model, torch.device("cpu"))
    examples = [model.example(Tones().read(u.audio), u.text) for u in utterances(12)]
    batch = model.collate(
        [replace(e, labels=(e.labels[0], *e.labels)) if i == 3 else e for i, e in enumerate(examples)]
    )
    assert _wrong_rows(batch, examples) == [3]


def _wrong_rows(batch: Batch, examples: Sequence[Example]) -> list[int]:
    rows = [tuple(row[row != -100].tolist()) for row in batch.tensors["labels"]]
    return [index for index, (row, example) in enumerate(zip(rows, examples, strict=True)) if row != example.labels]


# --- invariant 6: phases

PHASES: list[dict[str, Any]] = [
    {"name": "B", "epochs": 1, "rates": {"projector": 1e-3, "lm_head": 1e-3}},
    {"name": "A", "epochs": 1, "rates": {"projector": 1e-3, "audio_top:1": 1e-3, "lm_head": 1e-3}},
]
CTC_PHASES: list[dict[str, Any]] = [
    {"name": "B", "epochs": 1, "rates": {"lm_head": 1e-3}},
    {"name": "A", "epochs": 1, "rates": {"audio_top:1": 1e-3, "lm_head": 1e-3}},
]
STILL = {"toy": "llm_top:1", "qwen3-asr": "llm_top:1", "ctc": "front", "parakeet": "front"}
"""A group that no phase names."""


def test_a_phase_moves_what_it_names_and_ranks_stay_identical(kind: str, family: Family, tmp_path: Path) -> None:
    phases = CTC_PHASES if family.name == "ctc" else PHASES
    spec = spec_of(kind, phases=phases, global_batch=8, keep={"every_steps": 100, "last": 5})
    base = family.prepare(spec.model, WORDS, spec.seed, tmp_path / "base")
    prints = on_ranks(2, _two_phases, family, tmp_path, spec)
    assert prints[0] == prints[1]
    groups = ["lm_head", "audio_top:1", STILL[kind], *({"projector"} & phases[0]["rates"].keys())]
    before, boundary, after = (
        _weights(family, spec, folder, groups) for folder in (base, *sorted(tmp_path.glob("train/checkpoints/*")))
    )
    for phase, moved in ((phases[0], _moved(before, boundary)), (phases[1], _moved(boundary, after))):
        assert moved == {group: group in phase["rates"] for group in groups}, phase["name"]


def test_thawing_under_an_old_wrap_makes_ranks_drift() -> None:
    """The twin: what the seed's script did raises nothing, and this check is what sees it."""
    assert on_ranks(2, _naive_switch, False) == [True, True]
    assert on_ranks(2, _naive_switch, True) == [False, False]


def _two_phases(family: Family, folder: Path, spec: Any) -> str:
    with processes() as ranks:
        trained = train(work_in(folder, count=32, spec=spec, family=family), ranks)
        model = family.load(trained.chosen.path, spec.model, ranks.device)
        run = hashlib.sha256()
        for tensor in model.network.state_dict().values():
            run.update(tensor.numpy().tobytes())
        return run.hexdigest()


def _weights(family: Family, spec: RoundSpec, folder: Path, names: list[str]) -> dict[str, list[torch.Tensor]]:
    groups = family.load(folder, spec.model, torch.device("cpu")).groups(names)
    return {name: [p.detach().clone() for p in parameters] for name, parameters in groups.items()}


def _moved(before: dict[str, list[torch.Tensor]], after: dict[str, list[torch.Tensor]]) -> dict[str, bool]:
    found = {}
    for name, old in before.items():
        same = [torch.equal(a, b) for a, b in zip(old, after[name], strict=True)]
        assert all(same) or not all(same[:1]), name
        found[name] = not all(same)
    return found


def _naive_switch(thaw: bool) -> bool:
    """Some steps of DDP in which, with `thaw`, a frozen layer is thawed in the middle; are the ranks identical?"""
    with processes() as ranks:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
        network[0].requires_grad_(False)
        wrapped = DistributedDataParallel(network)
        optimizer = torch.optim.AdamW(network[1].parameters(), lr=1e-2)
        for step in range(6):
            if thaw and step == 3:
                network[0].requires_grad_(True)
                optimizer.add_param_group({"params": list(network[0].parameters())})
            optimizer.zero_grad()
            wrapped(torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * step + ranks.rank))).sum().backward()
            optimizer.step()
        del wrapped
        return identical(ranks, network.state_dict().values())


def test_identical_sees_one_bit() -> None:
    assert on_ranks(2, _one_bit, False) == [True, True]
    assert on_ranks(2, _one_bit, True) == [False, False]


def _one_bit(flip: bool) -> bool:
    with processes() as ranks:
        tensor = torch.arange(1000, dtype=torch.float32)
        if flip and ranks.rank == 1:
            tensor[[3, 4]] = tensor[[4, 3]].clone()  # the same sum, another order
        return identical(ranks, [torch.ones(3), tensor])


# --- ranks that have nothing to do


def test_more_ranks_than_utterances(tmp_path: Path) -> None:
    curves = [_losses(tmp_path / str(n), n) for n in (1, 3)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["ctc", "parakeet"])
def test_a_real_model_follows_the_same_curve_on_any_number_of_ranks(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind, global_batch=4, phases=[{"name": "full", "epochs": 1, "rates": {"all": 1e-3}}])
    family = family_of(spec.model)
    curves = []
    for world_size in (1, 2):
        family.prepare(spec.model, WORDS, spec.seed, tmp_path / str(world_size) / "base")
        on_ranks(world_size, _train, tmp_path / str(world_size), spec, family)
        curves.append(_curve(tmp_path / str(world_size)))
    assert len(curves[0]) > 2
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_another_number_of_ranks_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    """Two ranks until step 5, then one, or three: phases, augmentation and all."""
    speed = {"speed": [0.9, 1.0, 1.1]}
    spec = spec_of(phases=PHASES, augment=speed, keep={"every_steps": 5, "last": 9}, global_batch=4)
    ToyFamily().prepare(spec.model, WORDS, spec.seed, tmp_path / "base")
    on_ranks(2, _train, tmp_path, spec)
    whole = _curve(tmp_path)
    for world_size in (1, 3):
        for path in (tmp_path / "train/checkpoints").glob("step-*"):
            if path.name > "step-000005":
                shutil.rmtree(path)
        on_ranks(world_size, _train, tmp_path, spec)
        assert _curve(tmp_path) == pytest.approx(whole, rel=1e-4)


def _losses(folder: Path, world_size: int) -> list[float]:
    spec = spec_of(global_batch=2, phases=[{"name": "full", "epochs": 2, "rates": {"all": 1e-3}}])
    ToyFamily().prepare(spec.model, WORDS, spec.seed, folder / "base")
    on_ranks(world_size, _train, folder, spec)
    return _curve(folder)


def _curve(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def _train(folder: Path, spec: Any, family: Family | None = None) -> None:
    with processes() as ranks:
        train(work_in(folder, count=10, spec=spec, family=family), ranks)
