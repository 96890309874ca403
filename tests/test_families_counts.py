"""Counts: what is stored is what is counted, what is counted is what is loaded, and memory is what tensors take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caspi.errors import UserError
from caspi.families import family_of
from caspi.families.base import Model
from caspi.families.counts import STORED, Counts, count_known, parameter_counts
from caspi.families.counts_ctc import CtcCounts
from caspi.families.ctc_tiny import config_values
from caspi.plan.memory import group_parameters
from caspi.spec.models import CtcModel, ModelSpec, Qwen3AsrModel
from caspi.spec.round import TrainSpec

TEXTS = ["HELLO WORLD", "AND AGAIN", "THE END"]
TINY: dict[str, ModelSpec] = {
    "qwen3": Qwen3AsrModel(family="qwen3-asr", base="tiny", language="Hebrew"),
    "wav2vec2": CtcModel(family="ctc", base="tiny"),
    "parakeet": CtcModel(family="ctc", base="tiny-parakeet"),
}
GROUPS = {
    "qwen3": ("all", "projector", "lm_head", "llm_top:1", "llm_top:2", "audio_top:2"),
    "wav2vec2": ("all", "front", "encoder", "audio_top:1", "audio_top:2", "lm_head"),
    "parakeet": ("all", "front", "encoder", "audio_top:1", "audio_top:3", "lm_head"),
}


def known(spec: ModelSpec) -> Counts:
    counts = parameter_counts(spec)
    assert counts is not None
    return counts


def qwen(base: str, revision: str | None = None) -> ModelSpec:
    return Qwen3AsrModel(family="qwen3-asr", base=base, revision=revision, language="Hebrew")


def ctc(base: str, revision: str | None = None) -> ModelSpec:
    return CtcModel(family="ctc", base=base, revision=revision)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: family_of(spec).prepare(spec, TEXTS, 0, folder) for name, spec in TINY.items()}


@pytest.fixture(scope="module")
def models(bases: dict[str, Path]) -> dict[str, Model]:
    return {name: family_of(TINY[name]).load(base, TINY[name], "cpu") for name, base in bases.items()}


def test_stored_counts_are_what_the_meta_device_counts() -> None:
    assert json.loads(STORED.read_text(encoding="utf-8")) == json.loads(json.dumps(count_known()))


@pytest.mark.parametrize(
    ("base", "total", "strategy_b", "strategy_a"),
    [
        ("Qwen/Qwen3-ASR-1.7B", 2_038_052_480, 918_347_776, 1_019_117_568),
        ("Qwen/Qwen3-ASR-0.6B", 782_426_112, 346_077_824, 423_241_344),
    ],
)
def test_counts_of_the_published_models(base: str, total: int, strategy_b: int, strategy_a: int) -> None:
    counts = known(qwen(base, "0123abcd"))
    assert counts.tied
    assert counts.total == counts.group("all") == total
    b = sum(counts.group(name) for name in ("projector", "llm_top:12", "lm_head"))
    assert (b, b + counts.group("audio_top:8")) == (strategy_b, strategy_a)


def test_counts_of_wav2vec2_large() -> None:
    """By hand: seven convolutions of 512 channels without a bias and one norm; 24 layers of 12,596,224; a head of
    32 rows; and the vector that masks, which never moves."""
    counts = known(ctc("facebook/wav2vec2-large-960h", "0123abcd"))
    front = 512 * 10 + 4 * 512 * 512 * 3 + 2 * 512 * 512 * 2 + 2 * 512
    layer = 4 * (1024 * 1024 + 1024) + 2 * 4 * 1024 * 1024 + 4096 + 1024 + 2 * 2 * 1024
    assert (counts.group("front"), counts.group("audio_top:1")) == (front, layer)
    assert counts.group("lm_head") == 33 * 1024 - 1024 + 32
    assert counts.total == 315_461_792
    assert counts.group("front") + counts.group("encoder") + counts.group("lm_head") == counts.group("all")
    assert counts.total - counts.group("all") == 1024


@pytest.mark.parametrize("name", sorted(TINY))
def test_counts_are_those_of_the_loaded_model(name: str, bases: dict[str, Path], models: dict[str, Model]) -> None:
    """Also when the base is a folder, which is counted anew."""
    counts, model = known(TINY[name]), models[name]
    for group in GROUPS[name]:
        assert counts.group(group) == sum(p.numel() for p in model.groups([group])[group]), group
    assert counts.total == sum(parameter.numel() for parameter in model.network.parameters())
    assert known(TINY[name].model_copy(update={"base": str(bases[name])})) == counts


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj", "k_proj"], ["up_proj", "down_proj"]])
def test_adapters_are_counted_as_they_are_made(name: str, targets: list[str], models: dict[str, Model]) -> None:
    import re

    pattern = models[name].adapted(targets)
    matrices = [m for where, m in models[name].network.named_modules() if re.fullmatch(pattern, where)]
    assert matrices
    by_hand = sum(8 * (matrix.in_features + matrix.out_features) for matrix in matrices)
    train = TrainSpec.model_validate(
        {
            "global_batch": 8,
            "phases": [{"name": "A", "epochs": 1, "rates": {"lora": 1e-4}}],
            "lora": {"rank": 8, "targets": targets},
        }
    )
    assert group_parameters(known(TINY[name]), train, "lora") == by_hand


def test_counts_refuse_more_layers_than_there_are() -> None:
    with pytest.raises(UserError, match='"audio_top:40": the audio encoder has 24 layers'):
        known(qwen("Qwen/Qwen3-ASR-1.7B", "0123abcd")).group("audio_top:40")
    with pytest.raises(UserError, match='"audio_top:25": the encoder has 24 layers'):
        known(ctc("facebook/wav2vec2-xls-r-300m", "0123abcd")).group("audio_top:25")
    with pytest.raises(UserError, match=r"gate_proj can't be adapted here; it has .*q_proj"):
        known(ctc("tiny")).adapters(["gate_proj"])


def test_counts_of_what_is_not_here_are_unknown(tmp_path: Path) -> None:
    for spec in (qwen, ctc):
        assert parameter_counts(spec(str(tmp_path / "gone"))) is None
        assert parameter_counts(spec("someone/a-model-nobody-has", "0123abcd")) is None


def test_counts_of_another_family_are_unknown(bases: dict[str, Path]) -> None:
    assert parameter_counts(qwen(str(bases["wav2vec2"]))) is None
    assert parameter_counts(ctc(str(bases["qwen3"]))) is None


# --- activations: the estimate against what autograd really keeps


def kept_a_second(model: Model, seconds: float, clips: int) -> float:
    """Bytes that a forward pass keeps for the backward pass, weights left out, by padded second."""
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, int(16_000 * seconds)).astype(np.float32) for _ in range(clips)]
    batch = model.collate([model.example(sound, TEXTS[0]) for sound in sounds])
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.network.parameters()}
    kept: dict[int, int] = {}
    alive = []  # or a freed address would come again, and count once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    model.network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.network(**batch.tensors)
    return sum(kept.values()) / (seconds * clips)


@pytest.mark.parametrize("name", ["wav2vec2", "parakeet"])
@pytest.mark.parametrize(("seconds", "clips"), [(3.0, 2), (10.0, 1), (6.0, 3)])
def test_activations_are_what_autograd_keeps(name: str, seconds: float, clips: int, models: dict[str, Model]) -> None:
    measured = kept_a_second(models[name], seconds, clips)
    assert known(TINY[name]).activation_bytes(False, seconds) == pytest.approx(measured, rel=0.25)


VARIED: list[tuple[str, dict[str, Any]]] = [
    ("tiny", {"num_hidden_layers": 6}),
    ("tiny", {"intermediate_size": 1024}),
    ("tiny", {"conv_dim": [256, 128, 64], "vocab_size": 500}),
    ("tiny", {"feat_extract_norm": "group", "conv_bias": False}),
    ("tiny", {"conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2], "conv_dim": [48] * 7}),
    ("tiny", {"feat_extract_activation": "gelu"}),
    ("tiny", {"feat_extract_activation": "gelu", "feat_extract_norm": "group", "conv_bias": False}),
    ("tiny", {"model_type": "hubert"}),
    ("tiny", {"model_type": "wavlm"}),
    ("tiny-parakeet", {"encoder_config": {"num_hidden_layers": 5, "num_attention_heads": 8, "subsampling_factor": 8}}),
]


@pytest.mark.parametrize(("base", "changes"), VARIED, ids=[str(changes) for _, changes in VARIED])
def test_activations_follow_the_dimensions(base: str, changes: dict[str, Any]) -> None:
    """Each dimension by itself, on networks of random weights: a forgotten one would be far off somewhere."""
    from transformers import AutoConfig, AutoModelForCTC

    from caspi.families.ctc_network import Network

    config = config_values(base)
    inner = {**config.get("encoder_config", {}), **changes.get("encoder_config", {})}
    config |= {**changes, **({"encoder_config": inner} if inner else {})}
    if "conv_dim" in config:
        config["num_feat_extract_layers"] = len(config["conv_dim"])
    values = {name: value for name, value in config.items() if name != "model_type"}
    kinds: Any = AutoModelForCTC
    network = Network(kinds.from_config(AutoConfig.for_model(config["model_type"], **values)))

    class Bare:
        def __init__(self) -> None:
            self.network = network

        def example(self, clip: Any, text: str) -> Any:
            return clip

        def collate(self, clips: Any) -> Any:
            samples = torch.from_numpy(np.stack(clips))
            if inner:
                samples = torch.zeros(len(clips), samples.shape[1] // 160, 80)
            steps = torch.full((len(clips),), samples.shape[1])
            tensors = {"features": samples, "steps": steps, "labels": torch.full((len(clips), 9), 3)}
            return type("Padded", (), {"tensors": tensors})

    measured = kept_a_second(Bare(), 6.0, 2)  # type: ignore[arg-type]
    assert CtcCounts.count(config).activation_bytes(False, 6.0) == pytest.approx(measured, rel=0.25)


def test_recomputation_keeps_less_and_long_utterances_more() -> None:
    for spec in (ctc("tiny"), ctc("facebook/wav2vec2-large-960h", "0123abcd"), qwen("tiny")):
        counts = known(spec)
        assert counts.activation_bytes(True, 10.0) < counts.activation_bytes(False, 10.0)
        assert counts.activation_bytes(False, 30.0) == counts.activation_bytes(False, 10.0)
    relative = known(ctc("tiny-parakeet"))  # its scores are a matrix
    assert relative.activation_bytes(False, 30.0) > relative.activation_bytes(False, 10.0)
