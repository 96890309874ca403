"""LoRA: adapters move and nothing else does, what is saved is merged, and a resume is exact."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from caspi.errors import StageFailed, UserError
from caspi.families.base import Family, Model
from caspi.families.qwen3_asr import QWEN3_ASR
from caspi.spec import RoundSpec
from caspi.training.distributed import processes
from caspi.training.engine import train
from caspi.training.lora import Adapted, check_all_take_part, with_adapters
from tests.ranks import FORK, on_ranks
from tests.toy_family import ToyFamily
from tests.training_work import WORDS, Tones, spec_of, trained_by, utterances, work_in

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
ONLY = [{"name": "A", "epochs": 2, "rates": {"lora": 1e-2}}]
BESIDE = [
    {"name": "B", "epochs": 1, "rates": {"lm_head": 5e-3}},
    {"name": "A", "epochs": 2, "rates": {"lora": 1e-2, "projector": 5e-3, "lm_head": 5e-3}},
]


def lora_spec(phases: Any = ONLY, lora: Any = LORA, **changes: Any) -> RoundSpec:
    keep = {"every_steps": 3, "last": 9, "best": 1}
    return spec_of(**{"phases": phases, "lora": lora, "keep": keep, **changes})


@pytest.fixture(scope="module", params=["toy", "qwen3-asr"])
def family(request: pytest.FixtureRequest) -> Family:
    return ToyFamily() if request.param == "toy" else QWEN3_ASR


@pytest.fixture(scope="module")
def base(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = spec_of()
    return family.prepare(spec.model, WORDS, spec.seed, tmp_path_factory.mktemp(family.name))


def _adapted(family: Family, base: Path, spec: RoundSpec, checkpoint: Path | None = None) -> Any:
    return with_adapters(family.load(base, spec.model, torch.device("cpu")), spec.train, spec.seed, checkpoint)


def _moved(model: Any, seed: int = 1) -> Any:
    """As after some training: B is no longer 0."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=drawn))
    return model


def _loss(model: Model) -> float:
    batch = model.collate([model.example(Tones().read(u.audio), u.text) for u in utterances(8)])
    with torch.inference_mode():
        return float(model.network.eval()(**batch.tensors)) / batch.tokens


def _tensors(model: Model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


# --- adapters, where they belong


def test_it_begins_as_its_base_and_the_same_on_every_process(family: Family, base: Path) -> None:
    spec = lora_spec()
    plain = family.load(base, spec.model, torch.device("cpu"))
    first = _adapted(family, base, spec)
    torch.manual_seed(99)  # whatever the state of the global generator
    second = _adapted(family, base, spec)
    assert _loss(first) == pytest.approx(_loss(plain), abs=1e-6)
    assert all(torch.equal(tensor, _tensors(second)[name]) for name, tensor in _tensors(first).items())
    other = _adapted(family, base, spec.model_copy(update={"seed": 8}))
    names = [name for name in _tensors(first) if "lora_A" in name]
    assert names and not any(torch.equal(_tensors(first)[name], _tensors(other)[name]) for name in names)


def test_the_group_is_the_adapters_and_other_groups_have_none(family: Family, base: Path) -> None:
    model = _adapted(family, base, lora_spec())
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    groups = {name: {names[id(p)] for p in model.groups([name])[name]} for name in ("lora", "all")}
    assert groups["lora"] == {name for name in names.values() if "lora_" in name}
    assert not groups["all"] & groups["lora"] and len(groups["all"]) + len(groups["lora"]) == len(names)
    described = model.described()
    assert described.parameters == sum(p.numel() for p in model.groups(["lora"])["lora"])
    assert 2 * described.matrices == len(groups["lora"])


def test_the_audio_tower_has_none(tmp_path: Path) -> None:
    """It has q_proj too: servers ignore adapters there, and merging them is not what was asked for."""
    spec = lora_spec(lora={**LORA, "targets": ["q_proj", "v_proj", "down_proj"]})
    base = QWEN3_ASR.prepare(spec.model, WORDS, spec.seed, tmp_path)
    model = _adapted(QWEN3_ASR, base, spec)
    layers = len(model.network.thinker.model.layers)
    assert len(model.matrices) == 3 * layers
    assert all(re.fullmatch(r"thinker\.model\.layers\.\d+\..*(q|v|down)_proj", name) for name in model.matrices)

    naive = QWEN3_ASR.load(base, spec.model, torch.device("cpu"))  # the fault: a plain name
    naive.adapted = lambda targets: ".*q_proj"  # type: ignore[method-assign]
    assert any("audio_tower" in name for name in Adapted(naive, spec.train.lora, spec.train, 7).matrices)  # type: ignore[arg-type]


def test_no_such_matrix_is_said(tmp_path: Path) -> None:
    spec = lora_spec()
    model = ToyFamily().load(ToyFamily().prepare(spec.model, WORDS, 7, tmp_path), spec.model, torch.device("cpu"))
    model.adapted = lambda targets: "nothing"  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"train.lora.targets = q_proj.*the model has no such matrices"):
        with_adapters(model, spec.train, 7, None)


# --- what is saved


def test_what_is_saved_is_merged_and_does_what_the_adapters_do(family: Family, base: Path, tmp_path: Path) -> None:
    spec = lora_spec()
    model = _moved(_adapted(family, base, spec))
    before, loss = _tensors(model), _loss(model)
    model.save(tmp_path)
    after = _tensors(model)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))
    assert {p.name for p in base.iterdir() if p.is_file()} <= {p.name for p in tmp_path.iterdir()}
    merged = family.load(tmp_path, spec.model, torch.device("cpu"))
    assert _loss(merged) == pytest.approx(loss, abs=1e-5)
    assert abs(_loss(family.load(base, spec.model, torch.device("cpu"))) - loss) > 1e-3  # the adapters do something
    assert merged.tied() == model.tied()


def test_only_the_adapted_matrices_differ_from_the_base(family: Family, base: Path, tmp_path: Path) -> None:
    spec = lora_spec()
    model = _moved(_adapted(family, base, spec))
    model.save(tmp_path)
    old, new = (_tensors(family.load(folder, spec.model, torch.device("cpu"))) for folder in (base, tmp_path))
    assert {name for name in old if not torch.equal(old[name], new[name])} == {
        f"{name}.weight" for name in model.matrices
    }


def test_a_wrong_merge_is_caught(tmp_path: Path) -> None:
    """The twin: a scale that the forward pass uses and the merge does not would be saved as another model."""
    spec = lora_spec()
    model = _moved(_adapted(ToyFamily(), ToyFamily().prepare(spec.model, WORDS, 7, tmp_path / "base"), spec))
    for matrix in model.matrices.values():
        matrix.scaling["default"] = float("nan")
    (tmp_path / "model").mkdir()
    with pytest.raises(StageFailed, match=r"the merged weights of front differ from its adapter's"):
        model.save(tmp_path / "model")
    assert {name for name, _ in model.network.named_modules()} >= {"front.base_layer", "projector.base_layer"}


def test_an_adapter_that_nothing_uses_is_caught(tmp_path: Path) -> None:
    spec = lora_spec()
    model = _adapted(ToyFamily(), ToyFamily().prepare(spec.model, WORDS, 7, tmp_path), spec)
    check_all_take_part(model.matrices)  # none has moved yet
    _moved(model)
    check_all_take_part(model.matrices)
    with torch.no_grad():
        model.matrices["front"].lora_B["default"].weight.zero_()
    with pytest.raises(UserError, match=r"the adapter of front never moves while others do.*leave that target out"):
        check_all_take_part(model.matrices)


# --- training


def test_the_base_does_not_move_and_the_model_learns(family: Family, tmp_path: Path) -> None:
    work = work_in(tmp_path, count=32, spec=lora_spec(), family=family)
    trained = trained_by(work)
    loads = (family.load(folder, work.spec.model, torch.device("cpu")) for folder in (work.base, trained.chosen.path))
    old, new = (_tensors(model) for model in loads)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert trained.adapters is not None and len(changed) == trained.adapters.matrices
    assert trained.phases[0].trainable == trained.adapters.parameters < trained.phases[0].parameters / 2
    state = load_file(trained.chosen.path / "engine" / "adapters.safetensors")
    assert all(
        "lora_" in name
        for name in state
        if name in dict(_adapted(family, work.base, work.spec).network.named_parameters())
    )


@pytest.mark.parametrize("phases", [ONLY, BESIDE], ids=["only", "beside"])
def test_killed_and_resumed_is_bit_equal(phases: Any, tmp_path: Path) -> None:
    lora = {**LORA, "beside_groups": phases is BESIDE}
    spec = lora_spec(phases, lora, augment={"noise": {"snr": [5, 15]}, "speed": [0.9, 1.0]})
    for name, kills in (("whole", []), ("killed", [2, 5, 10])):
        for at in kills:
            _train_until(tmp_path / name, spec, at)
        _train_until(tmp_path / name, spec, None)
    last = sorted((tmp_path / "whole/train/checkpoints").glob("step-*"))[-1].name
    for file in ("model.safetensors", "engine/adapters.safetensors", "engine/optimizer.safetensors"):
        whole, killed = (load_file(tmp_path / name / "train/checkpoints" / last / file) for name in ("whole", "killed"))
        assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole), file


def test_a_resume_from_merged_weights_is_not(tmp_path: Path) -> None:
    """The twin: adapters begun anew on merged weights follow another curve, and the comparison sees it."""
    spec = lora_spec()
    base = ToyFamily().prepare(spec.model, WORDS, 7, tmp_path / "base")
    model = _moved(_adapted(ToyFamily(), base, spec))
    (tmp_path / "at").mkdir()
    model.save(tmp_path / "at")
    exact, again = _adapted(ToyFamily(), base, spec, tmp_path / "at"), _adapted(ToyFamily(), tmp_path / "at", spec)
    assert all(torch.equal(tensor, _tensors(model)[name]) for name, tensor in _tensors(exact).items())
    assert not all(torch.equal(tensor, _tensors(model)[name]) for name, tensor in _tensors(again).items())


def test_adapters_of_another_round_are_refused(tmp_path: Path) -> None:
    spec = lora_spec()
    base = ToyFamily().prepare(spec.model, WORDS, 7, tmp_path / "base")
    (tmp_path / "at/engine").mkdir(parents=True)
    save_file({"x": torch.ones(1)}, tmp_path / "at/engine/adapters.safetensors")
    with pytest.raises(UserError, match="are not those of this round"):
        _adapted(ToyFamily(), base, spec, tmp_path / "at")


def test_any_number_of_processes_follows_the_same_curve(tmp_path: Path) -> None:
    spec = lora_spec(lora={**LORA, "dropout": 0.0}, augment={"noise": {"snr": [5, 15], "share": 1.0}})
    found = [on_ranks(size, _curve, tmp_path / str(size), spec) for size in (1, 2)]
    assert found[1][0] == found[1][1]  # the ranks hold the same adapters
    assert found[0][0][0] == pytest.approx(found[1][0][0], rel=1e-4)


def _curve(folder: Path, spec: RoundSpec) -> tuple[list[float], float]:
    with processes() as ranks:
        if ranks.leader:
            ToyFamily().prepare(spec.model, WORDS, spec.seed, folder / "base")
        ranks.wait()
        trained = train(work_in(folder, count=24, spec=spec), ranks)
        state = load_file(trained.chosen.path / "engine" / "adapters.safetensors")
        return [score.loss for score in trained.dev], float(sum(tensor.double().sum() for tensor in state.values()))


def _train_until(folder: Path, spec: RoundSpec, step: int | None) -> None:
    """Train to the end, or until this step is logged: then kill -9."""
    child = FORK.Process(target=_train, args=(folder, spec))
    child.start()
    metrics = folder / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while step and (not metrics.exists() or metrics.read_bytes().count(b'"kind":"train"') < step):
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    if step:
        os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert child.exitcode == (-signal.SIGKILL if step else 0)


def _train(folder: Path, spec: RoundSpec) -> None:
    trained_by(work_in(folder, count=40, spec=spec, family=ToyFamily(dropout=0.1)))
    os._exit(0)
