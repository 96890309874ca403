"""What makes a step fast: the device is never waited for inside it, and decoding stops where a row ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caspi.corpus.audio import AudioError, AudioReader
from caspi.corpus.manifest import Utterance
from caspi.families import qwen3_audio
from caspi.families.base import Batch
from caspi.families.labels import IGNORED
from caspi.families.qwen3_asr import QWEN3_ASR, Qwen3Asr
from caspi.families.qwen3_network import Network
from caspi.spec.models import Qwen3AsrModel
from caspi.training.data import Order, Speech
from tests.training_work import spec_of

SPEC = Qwen3AsrModel(family="qwen3-asr", base="tiny", language="Hebrew")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return QWEN3_ASR.prepare(SPEC, ["שלום עולם"] * 20, 0, tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: Path) -> Qwen3Asr:
    model = QWEN3_ASR.load(base, SPEC, "cpu")
    assert isinstance(model, Qwen3Asr)
    return model


def batch_of(model: Qwen3Asr, *seconds: float) -> Batch:
    random = np.random.default_rng(0)
    clips = [random.normal(0, 0.1, int(each * 16_000)).astype(np.float32) for each in seconds]
    return model.collate([model.example(clip, "שלום") for clip in clips])


# --- the device is never waited for


class OnDevice(TorchDispatchMode):
    """Refuses whatever brings data from the host to the device in the middle of a step."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)}
        assert len(devices) <= 1 and "lift_fresh" not in str(func), f"{func} takes data to the device: {devices}"
        return out


def step(model: Qwen3Asr, batch: Batch, device: str) -> None:
    """Forward and backward as the engine runs them, on a device that need not be there.

    The tensors are torch's fake ones, which hold no data, so whatever asks them for a number raises by itself:
    the same calls (`tolist`, `nonzero`, indexing by a mask) that make a GPU finish all its work first.
    """
    network = model.network.train()
    with FakeTensorMode():
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in [each for each in tensors.items() if each[1] is not None]:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    tensors[name] = torch.nn.Parameter(there) if tensors is module._parameters else there
        given = {n: torch.empty(t.shape, dtype=t.dtype, device=device) for n, t in batch.tensors.items()}
        with OnDevice():
            loss = network(**given) * 0.5
            if device == "cpu":  # autograd asks the driver for its device, fake or not
                loss.backward()
                assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("seconds", [(0.4,), (0.4, 2.5, 0.9), (9.7, 17.0), (8.0, 8.0)])
@pytest.mark.parametrize(("device", "recompute"), [("cuda", False), ("cpu", False), ("cpu", True)])
def test_a_step_never_waits_for_the_device(
    model: Qwen3Asr, seconds: tuple[float, ...], device: str, recompute: bool
) -> None:
    if recompute:
        model.enable_recompute()
    step(model, batch_of(model, *seconds), device)


def _lengths_asked(tower, packed):
    packed.places.max().tolist()
    return ENCODE(tower, packed)


def _indexed_by_a_mask(tower, packed):
    return ENCODE(tower, packed._replace(places=packed.places[packed.places >= 0]))


def _places_from_the_host(tower, packed):
    return ENCODE(
        tower, packed._replace(places=torch.zeros(len(packed.places), dtype=torch.long).to(packed.places.device))
    )


ENCODE = qwen3_audio.encode


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (_lengths_asked, DataDependentOutputException),
        (_indexed_by_a_mask, DynamicOutputShapeException),
        (_places_from_the_host, AssertionError),
    ],
)
def test_what_waits_for_the_device_is_found(model: Qwen3Asr, monkeypatch, fault, error) -> None:
    monkeypatch.setattr(qwen3_audio, "encode", fault)
    with pytest.raises(error):
        step(model, batch_of(model, 0.4, 2.5), "cuda")


def test_labels_chosen_by_a_mask_are_found(model: Qwen3Asr, monkeypatch) -> None:
    forward = Network.forward

    def masked(self, input_ids, labels, labelled, **others):
        return forward(self, input_ids, labels, (labels != IGNORED).flatten().nonzero().squeeze(1), **others)

    monkeypatch.setattr(Network, "forward", masked)
    with pytest.raises(DynamicOutputShapeException):
        step(model, batch_of(model, 0.4, 2.5), "cuda")


# --- what is reckoned before the step


@pytest.mark.parametrize("seconds", [(0.4,), (1.0, 0.99), (9.7, 0.3, 17.0), (8.0, 8.01, 16.0)])
def test_places_are_those_of_the_labels_and_of_the_audio(model: Qwen3Asr, seconds: tuple[float, ...]) -> None:
    batch = batch_of(model, *seconds)
    ids, labels = batch.tensors["input_ids"].flatten(), batch.tensors["labels"].flatten()
    assert torch.equal(labels[batch.tensors["labelled"]], labels[labels != IGNORED])
    assert len(batch.tensors["labelled"]) == batch.tokens
    assert set(ids[batch.tensors["listening"]].tolist()) == {model.tokenizer.convert_tokens_to_ids("<|audio_pad|>")}
    assert len(batch.tensors["listening"]) == len(batch.tensors["heard"]) == len(batch.tensors["places"])


@pytest.mark.parametrize("frames", [(40,), (100, 99), (970, 30, 1700), (800, 801, 1600), (10,)])
def test_packing_says_what_is_filling_and_what_sees_what(frames: tuple[int, ...]) -> None:
    packed = qwen3_audio.pack([np.full((4, each), number + 1.0, np.float32) for number, each in enumerate(frames)], 8)
    lengths = [min(100, each - start) for each in frames for start in range(0, each, 100)]
    assert packed.chunks.shape == (len(lengths), 4, 100)
    for chunk, length in zip(packed.chunks, lengths, strict=True):
        assert bool((chunk[:, :length] != 0).all()) and not chunk[:, length:].any()
    heard = [
        chunk * 13 + token for chunk, length in enumerate(lengths) for token in range(qwen3_audio.audio_tokens(length))
    ]
    assert packed.heard.tolist() == heard

    windows = [
        min(104, tokens - start) for tokens in map(qwen3_audio.audio_tokens, frames) for start in range(0, tokens, 104)
    ]
    assert packed.seen.sum(1).tolist() == windows and packed.seen.shape[1] == max(windows)
    assert packed.places.tolist() == packed.seen.flatten().nonzero().squeeze(1).tolist()
    assert packed.widths.tolist() == (
        [min(each, 100) for each in frames for _ in range(0, each, 100)] if min(frames) < 100 else []
    )


# --- decoding


def test_rows_that_ended_are_let_go_and_the_others_write_on(model: Qwen3Asr, monkeypatch) -> None:
    """An untrained model writes up to each clip's own bound: rows end one after the other."""
    random = np.random.default_rng(0)
    clips = [random.normal(0, 0.1, int(each * 16_000)).astype(np.float32) for each in (0.3, 2.0, 0.5, 1.2)]
    alone = [model.transcribe([clip])[0] for clip in clips]
    computed = []
    model.network.thinker.lm_head.register_forward_hook(lambda _, __, out: computed.append(len(out)))
    assert model.transcribe(clips) == alone
    assert computed[0] == 4 and computed[-1] == 1 and computed == sorted(computed, reverse=True)


# --- bad sound


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_sound_that_is_not_a_number_is_skipped_and_counted(model: Qwen3Asr, tmp_path: Path, value: float) -> None:
    """Not trained on: one such clip makes the loss of its whole step NaN."""
    random = np.random.default_rng(0)
    for name in ("good", "bad"):
        clip = random.normal(0, 0.1, 16_000).astype(np.float32)
        if name == "bad":
            clip[8_000] = value
        soundfile.write(tmp_path / f"{name}.wav", clip, 16_000, subtype="FLOAT")
    utterances = [Utterance(n, f"clips/{n}.wav", "שלום", 1.0, "clips", "general") for n in ("good", "bad")]
    speech = Speech(spec_of(), utterances, AudioReader({"clips": tmp_path}), model)
    order = Order(0, 0, True, (0, 1), (0, 0), (1.0, 1.0), 2.0, 2.0)
    made = speech[order]
    assert made.skipped == ("bad",) and made.problem is None and made.batch is not None
    assert bool(torch.isfinite(model.network(**made.batch.tensors)))

    with pytest.raises(AudioError, match=r"samples reach (nan|inf)"):
        speech.reader.read("clips/bad.wav")
    clip, _ = soundfile.read(tmp_path / "bad.wav", dtype="float32")  # what happens without the check
    assert not bool(torch.isfinite(model.network(**model.collate([model.example(clip, "שלום")]).tensors)))


# --- imports

LIGHT = """
import sys
import caspi.families.qwen3_asr as family
family.backend()
heavy = {name.split(".")[0] for name in sys.modules} & {"sklearn", "scipy", "pandas"}
assert not heavy, heavy
from transformers.loss.loss_for_object_detection import linear_sum_assignment as lent
import numpy, scipy.optimize, sklearn.metrics
costs = numpy.array([[3.0, 1.0], [1.0, 3.0]])
assert lent(costs)[1].tolist() == scipy.optimize.linear_sum_assignment(costs)[1].tolist() == [1, 0]
from transformers.generation.candidate_generator import roc_curve as lent
assert [each.tolist() for each in lent([0, 1], [0.1, 0.9])] == [
    each.tolist() for each in sklearn.metrics.roc_curve([0, 1], [0.1, 0.9])
]
"""


def test_the_model_s_classes_load_without_the_data_science_stack_and_take_nothing_away() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", LIGHT], check=True)
