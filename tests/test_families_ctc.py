"""CTC models against the package they come from: same loss, same gradients, same features, same transcripts, same
files. And against themselves: what a clip is batched with changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from caspi.errors import UserError
from caspi.families import CARD, card_of, ctc_tiny, detect, family_of
from caspi.families.base import Clip, Example
from caspi.families.ctc import CTC, Ctc
from caspi.families.ctc_folder import BACKBONES, with_corpus_vocabulary
from caspi.families.ctc_network import output_frames
from caspi.families.ctc_tokens import characters, write_characters
from caspi.families.labels import check_labels, round_trip
from caspi.files import write_json
from caspi.spec.models import CtcModel
from tests.training_work import WORDS, Tones, utterances

SPEC = CtcModel(family="ctc", base="tiny", language="Hebrew")
TEXTS = ["shalom mayim", "bayit", "yeled shemesh", "lehem"]
LENGTHS = (9_001, 4_480, 31_987, 16_000)
CLIPS = [np.random.default_rng(n).normal(0.01, 0.1, n).astype(np.float32) for n in LENGTHS]

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "conv_dim": [16, 16, 16],
    "conv_kernel": [20, 16, 8],
    "conv_stride": [10, 8, 4],
    "num_feat_extract_layers": 3,
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout"), 0.0),
    "feat_proj_dropout": 0.0,
    "mask_time_prob": 0.05,  # the package's own masking and dropping, as real bases have them: both must be off
    "layerdrop": 0.9,
    "pad_token_id": 0,
}
SEAMLESS = {
    "feature_extractor_type": "SeamlessM4TFeatureExtractor",
    "feature_size": 80,
    "num_mel_bins": 80,
    "padding_value": 0.0,
    "processor_class": "Wav2Vec2BertProcessor",
    "sampling_rate": 16_000,
    "stride": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "wav2vec2": {"model_type": "wav2vec2", "feat_extract_norm": "layer", "conv_bias": True, **SMALL},
    "wav2vec2, norm over time": {"model_type": "wav2vec2", "feat_extract_norm": "group", **SMALL},
    "wav2vec2, stable norm": {"model_type": "wav2vec2", "do_stable_layer_norm": True, **SMALL},
    "hubert": {"model_type": "hubert", "feat_extract_norm": "group", **SMALL},
    "wavlm": {"model_type": "wavlm", "feat_extract_norm": "layer", "conv_bias": True, **SMALL},
    "wav2vec2-bert": {
        "model_type": "wav2vec2-bert",
        "feature_projection_input_dim": 160,
        "conformer_conv_dropout": 0.0,
        **SMALL,
    },
    "parakeet": ctc_tiny.config_values("tiny-parakeet"),
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A base of each kind with random weights, made once."""
    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = _make(KINDS[kind], tmp_path_factory.mktemp(kind.replace(", ", "-").replace(" ", "-")))
        return made[kind]

    return make


def _make(config: dict[str, Any], folder: Path) -> Path:
    if config["model_type"] == "parakeet_ctc":
        return ctc_tiny.make("tiny-parakeet", folder, TEXTS * 4, 0)
    tokens = characters(TEXTS)
    write_characters(folder, tokens)
    mel = config["model_type"] == "wav2vec2-bert"
    ctc_tiny._write_model(folder, {**config, "vocab_size": len(tokens)}, SEAMLESS if mel else ctc_tiny._WAVEFORM, 0)
    with torch.no_grad():  # norms that do something, or their weights would never be tested
        tensors = load_file(folder / "model.safetensors")
        random = torch.Generator().manual_seed(1)
        for name, tensor in tensors.items():
            if "norm" in name and tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape, generator=random)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(params=KINDS)
def base(request: pytest.FixtureRequest, bases: Callable[[str], Path]) -> Path:
    return bases(request.param)


def load(folder: Path, spec: CtcModel = SPEC) -> Ctc:
    model = CTC.load(folder, spec, torch.device("cpu"))
    assert isinstance(model, Ctc)
    return model


def examples_of(model: Ctc) -> list[Example]:
    return [model.example(clip, text) for clip, text in zip(CLIPS, TEXTS, strict=True)]


def gradient(model: Ctc) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.groups(["all"])["all"] if p.grad is not None])


# --- the loss


def test_loss_and_gradients_are_the_package_s_of_each_clip_alone(base: Path) -> None:
    """One padded batch of ours against clips one by one, without padding, by the package's processor and loss."""
    from transformers import AutoModelForCTC, AutoProcessor

    model = load(base)
    ours = model.network.train()(**model.collate(examples_of(model)).tensors)
    ours.backward()

    processor, theirs = AutoProcessor.from_pretrained(base), AutoModelForCTC.from_pretrained(base).eval()
    theirs.config.ctc_loss_reduction = "sum"
    total = torch.zeros(())
    for clip, text in zip(CLIPS, TEXTS, strict=True):
        given = processor(clip, sampling_rate=16_000, return_tensors="pt")
        if (mask := given.get("attention_mask")) is not None and "input_features" in given:
            given["input_features"] = given["input_features"][:, : int(mask.sum())]
            given["attention_mask"] = mask[:, : int(mask.sum())]
        labels = torch.tensor([processor.tokenizer(text, add_special_tokens=False).input_ids])
        total = total + theirs(**given, labels=labels).loss
    total.backward()

    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(total.item(), rel=1e-5)
    mine = dict(model.network.model.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for name, parameter in theirs.named_parameters():
        if name.endswith("masked_spec_embed"):
            assert mine[name].grad is None
        else:
            assert (mine[name].grad - parameter.grad).abs().max() < 1e-4 * largest, name


def test_the_loss_does_not_depend_on_what_a_clip_is_batched_with(base: Path) -> None:
    model = load(base)
    examples = examples_of(model)
    whole = model.network.train()(**model.collate(examples).tensors)
    whole.backward()
    together = gradient(model).clone()
    model.network.zero_grad()
    parts = [model.network(**model.collate(part).tensors) for part in (examples[:1], examples[1:])]
    sum(parts, torch.zeros(())).backward()
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-5)
    assert float((gradient(model) - together).norm() / together.norm()) < 1e-5


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("wav2vec2", "padding attended to"),
        ("wav2vec2, norm over time", "norm over the padding"),
        ("parakeet", "norm over the batch"),
    ],
)
def test_the_faults_that_would_show(
    kind: str, fault: str, bases: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(bases(kind))
    model.network.train()
    if fault == "padding attended to":
        monkeypatch.setattr(
            "caspi.families.ctc_network._within",
            lambda longest, lengths: torch.ones(len(lengths), longest, dtype=torch.bool),
        )
    elif fault == "norm over the padding":
        monkeypatch.setattr(
            "caspi.families.ctc_network._normed_convolution", lambda layer, hidden, lengths: layer(hidden)
        )
    else:
        torch.nn.Module.train(model.network)
    examples = examples_of(model)
    with torch.no_grad():
        whole = model.network(**model.collate(examples).tensors).item()
        parts = sum(model.network(**model.collate([example]).tensors).item() for example in examples)
    assert abs(whole - parts) / whole > 1e-3


def test_buffers_never_move(bases: Callable[[str], Path]) -> None:
    """Batch norm's statistics would differ between ranks, and with the split."""
    model = load(bases("parakeet"))
    before = {name: buffer.clone() for name, buffer in model.network.named_buffers()}
    assert any("running_mean" in name for name in before)
    model.network.train()(**model.collate(examples_of(model)).tensors).backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.network.named_buffers())


def test_a_text_that_its_audio_cannot_spell_costs_nothing_and_is_named(base: Path) -> None:
    model = load(base)
    long = "shalom mayim lehem " * 6
    assert model.unfit(2.0, "shalom") is None
    assert model.unfit(0.2, long) == "ctc: the text is longer than its audio can spell"
    loss = model.network(**model.collate([model.example(CLIPS[1], long)]).tensors)
    assert loss.item() == 0.0
    loss.backward()
    assert not gradient(model).any()


def test_repeated_letters_need_a_blank_between_them(bases: Callable[[str], Path]) -> None:
    model = load(bases("wav2vec2"))
    frames = output_frames(model.network.model.config, 16_000)
    assert model.unfit(1.0, "ma" * (frames // 2)) is None
    assert model.unfit(1.0, "mm" * (frames // 2)) is not None
    for text in ("ma" * (frames // 2), "mm" * (frames // 2)):
        loss = model.network(**model.collate([model.example(np.resize(CLIPS[3], 16_000), text)]).tensors)
        assert (loss.item() == 0.0) == (model.unfit(1.0, text) is not None)


def test_frames_are_counted_as_they_come_out(base: Path) -> None:
    model = load(base)
    for samples in (1, 1_600, 1_759, 4_001, 16_000, 31_999):
        example = model.example(np.ones(samples, np.float32) * np.linspace(0, 1, samples, dtype=np.float32), "lehem")
        batch = model.collate([example])
        with torch.no_grad():
            logits, lengths = model.network.logits(batch.tensors["features"], batch.tensors["steps"])
        assert logits.shape[1] == int(lengths[0]) >= 1
        steps = model._features.steps(samples / 16_000)
        assert output_frames(model.network.model.config, steps) == int(lengths[0])


# --- features


@pytest.mark.parametrize("samples", [1_600, 4_001, 16_000, 87_199])
def test_features_are_the_package_s(samples: int, base: Path) -> None:
    from transformers import AutoFeatureExtractor

    clip = np.random.default_rng(samples).normal(0.02, 0.1, samples).astype(np.float32)
    theirs = AutoFeatureExtractor.from_pretrained(base)(clip, sampling_rate=16_000, return_tensors="pt")
    name = "input_features" if "input_features" in theirs else "input_values"
    model = load(base)
    batch = model.collate([model.example(clip, "lehem")])
    steps = int(batch.tensors["steps"][0])
    if name == "input_features":
        assert steps == int(theirs["attention_mask"].sum())
    assert torch.equal(batch.tensors["features"], theirs[name][:, :steps].float())


# --- letters


def test_text_comes_back_and_labels_say_it(base: Path) -> None:
    model = load(base)
    assert not round_trip(model, [*TEXTS, "shalom", "mm aa"]).changed
    assert check_labels(model, CLIPS, TEXTS) == []
    assert model.unknown is not None
    assert model.encode("X").count(model.unknown) == 1
    assert model.unknown not in model.encode("shalom yeled")


def test_lower_case_text_against_an_upper_case_vocabulary_is_unknown(tmp_path: Path) -> None:
    """What kept a WER at exactly 1.0 while the loss fell from 4.9 to 0.6."""
    base = ctc_tiny.make("tiny", tmp_path, [text.upper() for text in TEXTS], 0)
    trip = round_trip(load(base), TEXTS)
    assert trip.unknown_rate > 0.8
    assert round_trip(load(base), [text.upper() for text in TEXTS]).unknown == 0


def test_a_control_token_in_the_text_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match="holds a control token"):
        load(base).example(CLIPS[0], "shalom <pad> mayim")


# --- decoding


def test_transcripts_are_the_package_s_of_each_clip_alone(trained: tuple[Ctc, Path]) -> None:
    from transformers import AutoModelForCTC, AutoProcessor

    model, folder = trained
    processor, theirs = AutoProcessor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder).eval()
    clips = [Tones().read(u.audio) for u in utterances(12, seed=3)]
    heard = model.transcribe(clips)
    assert len({each.text for each in heard}) > 3
    for clip, each in zip(clips, heard, strict=True):
        given = processor(clip, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            best = theirs(**given).logits.argmax(-1)
            if "attention_mask" in given:
                best = best[:, : output_frames(theirs.config, int(given["attention_mask"].sum()))]
        assert each.text == processor.batch_decode(best)[0]
    assert heard == [model.transcribe([clip])[0] for clip in clips]


def test_padded_frames_decoded_would_be_heard(trained: tuple[Ctc, Path]) -> None:
    """The twin: with the padding's frames the same checkpoint says more than was said."""
    model, _ = trained
    clips = [Tones().read(u.audio) for u in utterances(12, seed=3)]
    batch = model.collate([model.example(clip, "") for clip in clips])
    with torch.no_grad():
        best = model.network.logits(batch.tensors["features"], batch.tensors["steps"])[0].argmax(-1)
    careless = [model._vocabulary.hear(row)[0] for row in best.tolist()]
    assert [each.text for each in model.transcribe(clips)] != careless


def test_hearing_merges_repeats_and_keeps_doubles(bases: Callable[[str], Path]) -> None:
    vocabulary = load(bases("wav2vec2"))._vocabulary
    m, a = vocabulary.encode("ma")
    blank, unknown = vocabulary.blank, vocabulary.unknown
    assert unknown is not None
    frames = [blank, m, m, blank, m, a, a, blank, unknown, unknown, vocabulary.size() + 3]
    assert vocabulary.hear(frames) == ("mma", "mma<unk>")
    assert vocabulary.hear([blank, blank]) == ("", "")
    assert [token for token, _ in groupby([m, m])] == [m]


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Ctc, Path]]:
    return {base: _trained(base, tmp_path_factory.mktemp(base)) for base in ("tiny", "tiny-parakeet")}


@pytest.fixture(params=["tiny", "tiny-parakeet"])
def trained(request: pytest.FixtureRequest, both: dict[str, tuple[Ctc, Path]]) -> tuple[Ctc, Path]:
    return both[request.param]


def _trained(base: str, folder: Path) -> tuple[Ctc, Path]:
    """After a few steps it writes letters."""
    spec = CtcModel(family="ctc", base=base, language="Hebrew")
    model = load(CTC.prepare(spec, WORDS, 0, folder), spec)
    data = utterances(48)
    examples = [model.example(Tones().read(u.audio), u.text) for u in data]
    moving = model.groups(["all"])["all"]
    optimizer = torch.optim.AdamW(moving, lr=3e-3 if base == "tiny" else 1e-3)
    for step in range(60 if base == "tiny" else 80):
        batch = model.collate([examples[(8 * step + n) % 48] for n in range(8)])
        (model.network.train()(**batch.tensors) / batch.tokens).backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.network.eval()
    model.save(folder / "model")
    return model, folder / "model"


# --- files

FRESH = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
from transformers import AutoModelForCTC, AutoProcessor
clips, *folders = sys.argv[1:]
for folder in folders:
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForCTC.from_pretrained(folder).eval()
    for clip in np.load(clips).values():
        given = processor(clip, sampling_rate=16000, return_tensors="pt")
        if "input_features" in given:
            frames = int(given["attention_mask"].sum())
            given = {name: value[:, :frames] for name, value in given.items()}
        with torch.no_grad():
            print(json.dumps(processor.batch_decode(model(**given).logits.argmax(-1))[0]))
"""


def test_checkpoints_load_in_a_fresh_process_with_transformers(
    both: dict[str, tuple[Ctc, Path]], tmp_path: Path
) -> None:
    clips = [Tones().read(u.audio) for u in utterances(6, seed=4)]
    np.savez(tmp_path / "clips.npz", **{str(n): clip for n, clip in enumerate(clips)})
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH, tmp_path / "clips.npz", *(folder for _, folder in both.values())],
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('"')]
    assert theirs == [each.text for model, _ in both.values() for each in model.transcribe(clips)]
    for model, folder in both.values():
        assert load(folder).transcribe(clips) == model.transcribe(clips)
        assert card_of(folder) == model._spec


def test_a_checkpoint_is_whole_and_the_same_bytes_again(base: Path, tmp_path: Path) -> None:
    load(base).save(tmp_path / "a")
    load(tmp_path / "a").save(tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in base.iterdir()} | {CARD}
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert detect(tmp_path / "a") is CTC


def test_a_half_precision_base_is_trained_and_saved_in_fp32(bases: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases("wav2vec2"), tmp_path / "half")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v.half() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    _edit("config.json", lambda config: config.update(torch_dtype="float16"))(folder)
    model = load(folder)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    model.save(tmp_path / "saved")
    assert "float16" not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_weight_norm_under_its_old_names_loads_the_same(
    kind: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """Published checkpoints say weight_g and weight_v; unmatched they would be random, and only a warning says so."""
    folder = shutil.copytree(bases(kind), tmp_path / "old")
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert any(name.endswith("weight_g") for name in renamed)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    new, old = load(bases(kind)), load(folder)
    for (name, one), (_, other) in zip(new.network.state_dict().items(), old.network.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def _edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return apply


def _remove(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [(folder / name).unlink() for name in names]


def _without(prefix: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        assert len(kept) < len(tensors)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return apply


def _more_letters(folder: Path) -> None:
    write_characters(folder, [*characters(TEXTS), *"QXZ"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_remove("config.json"), "config.json is missing"),
        (_remove("preprocessor_config.json"), "preprocessor_config.json is missing"),
        (_remove("vocab.json"), r"vocab.json \(or tokenizer.json\) is missing.*vocabulary: corpus"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"pickle.*convert the weights once"),
        (_remove("model.safetensors"), r"\*.safetensors is missing"),
        (_edit("config.json", lambda c: c.update(model_type="qwen3_asr")), "model_type is 'qwen3_asr', and ctc loads"),
        (_edit("config.json", lambda c: c.update(add_adapter=True)), "add_adapter is true"),
        (_edit("config.json", lambda c: c.update(vocab_size=9)), "the head of config.json spells 9"),
        (_edit("config.json", lambda c: c.update(vocab_size=99)), "do not load"),
        (_edit("config.json", lambda c: c.update(pad_token_id=3)), "pad_token_id 3"),
        (_edit("config.json", lambda c: c.update(num_hidden_layers=3)), "16 missing, for example wav2vec2.encoder"),
        (_edit("config.json", lambda c: c.update(num_hidden_layers=1)), "unexpected"),
        (_edit("preprocessor_config.json", lambda c: c.update(sampling_rate=8000)), "sampling_rate is 8000"),
        (_more_letters, "the tokenizer has"),
        (_without("lm_head."), "there is no CTC head.*vocabulary: corpus"),
        (_without("wav2vec2.encoder.pos_conv_embed"), "missing, for example wav2vec2.encoder.pos_conv"),
        (lambda f: (f / "model.safetensors").write_bytes(b"half"), "do not load"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    bases: Callable[[str], Path], tmp_path: Path, damage: Callable[[Path], Any], said: str
) -> None:
    folder = shutil.copytree(bases("wav2vec2"), tmp_path / "damaged")
    damage(folder)
    with pytest.raises(UserError, match=said) as refused:
        load(folder)
    assert all("\n" not in problem for problem in refused.value.problems)


# --- a new vocabulary


@pytest.mark.parametrize("kind", ["wav2vec2, norm over time", "hubert", "wav2vec2-bert", "parakeet"])
@pytest.mark.parametrize("bare", [False, True])
def test_a_new_vocabulary_gets_a_new_head_and_keeps_the_rest(
    kind: str, bare: bool, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """`bare`: what was only pre-trained has no head, no tokenizer, and no name before its weights."""
    from transformers import AutoFeatureExtractor, AutoProcessor

    hebrew = ["שלום עולם", "בית ספר", "אחת שתיים שלוש"]
    base = shutil.copytree(bases(kind), tmp_path / "base")
    if bare:
        prefix = BACKBONES[json.loads((base / "config.json").read_text())["model_type"]] + "."
        tensors = {
            name.removeprefix(prefix) if kind != "parakeet" else name: tensor
            for name, tensor in load_file(base / "model.safetensors").items()
            if not name.startswith(("lm_head", "ctc_head"))
        }
        save_file({**tensors, "quantizer.codevectors": torch.ones(2)}, base / "model.safetensors", {"format": "pt"})
        _edit("preprocessor_config.json", lambda values: values.pop("processor_class"))(base)
        for name in ("vocab.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (base / name).unlink(missing_ok=True)
    spec = CtcModel(family="ctc", base=str(base), vocabulary="corpus")
    made = CTC.prepare(spec, hebrew, 5, tmp_path / "work")
    assert CTC.prepare(spec, hebrew, 5, tmp_path / "work") == made
    model, before = load(made, spec), load(bases(kind))
    assert not round_trip(model, hebrew).changed
    assert model.unknown in model.encode("x")
    processor = AutoProcessor.from_pretrained(made)
    assert processor.batch_decode([model.encode(hebrew[0])], group_tokens=False) == hebrew[:1]
    assert processor.feature_extractor.to_dict() == AutoFeatureExtractor.from_pretrained(bases(kind)).to_dict()
    for name, tensor in before.network.model.state_dict().items():
        if name.endswith("head.bias"):
            continue  # both begin at 0
        same = name in (now := model.network.model.state_dict()) and torch.equal(now[name], tensor)
        assert same != name.startswith(("lm_head", "ctc_head")), name
    assert len({made, CTC.prepare(spec, [*hebrew, "עוד ץ"], 5, tmp_path / "work")}) == 2
    assert not list((tmp_path / "work").glob(".*"))


def test_the_same_texts_give_the_same_bytes(bases: Callable[[str], Path], tmp_path: Path) -> None:
    made = [
        with_corpus_vocabulary(bases("hubert"), texts, 1, tmp_path / n)
        for n, texts in (("a", TEXTS), ("b", TEXTS[::-1]))
    ]
    for path in made[0].iterdir():
        assert path.read_bytes() == (made[1] / path.name).read_bytes(), path.name


# --- parameters


def test_groups_are_disjoint_and_complete(base: Path) -> None:
    model = load(base)
    groups = model.groups(["front", "encoder", "lm_head"])
    assert all(groups.values())
    moving = {id(p) for group in groups.values() for p in group}
    assert moving == {id(p) for p in model.groups(["all"])["all"]}
    still = [name for name, p in model.network.named_parameters() if id(p) not in moving]
    assert all(name.endswith("masked_spec_embed") for name in still)
    assert {id(p) for p in model.groups(["audio_top:1"])["audio_top:1"]} <= {id(p) for p in groups["encoder"]}
    model.network.train()(**model.collate(examples_of(model)).tensors).backward()
    assert all(p.grad is not None for p in model.groups(["all"])["all"])  # DDP waits for each
    with pytest.raises(UserError, match="overlap"):
        model.groups(["encoder", "audio_top:1"])
    with pytest.raises(UserError, match='"audio_top:9": the encoder has'):
        model.groups(["audio_top:9"])
    with pytest.raises(UserError, match="is no group of ctc"):
        model.groups(["projector"])


def test_lora_adapts_matrices_of_the_layers_that_are_really_used(base: Path) -> None:
    import re

    model = load(base)
    if model._type == "wavlm":
        with pytest.raises(UserError, match="q_proj can't be adapted in wavlm; it has up_proj, down_proj"):
            model.adapted(["q_proj"])
    for target in ("up_proj",) if model._type == "wavlm" else ("q_proj", "o_proj", "up_proj", "down_proj"):
        found = [n for n, m in model.network.named_modules() if re.fullmatch(model.adapted([target]), n)]
        assert len(found) % len(model.blocks()) == 0 and found, target
        called: set[str] = set()
        for name in found:
            module = model.network.get_submodule(name)
            assert isinstance(module, torch.nn.Linear)
            module.register_forward_hook(lambda *_, name=name, called=called: called.add(name))
        model.transcribe(CLIPS[:1])
        assert called == set(found)
    with pytest.raises(UserError, match="gate_proj"):
        model.adapted(["gate_proj"])


def test_recomputation_changes_nothing(base: Path) -> None:
    model = load(base)
    batch = model.collate(examples_of(model))
    model.network.train()(**batch.tensors).backward()
    before = gradient(model).clone()
    model.network.zero_grad()
    model.enable_recompute()
    for parameter in model.groups(["front"])["front"]:
        parameter.requires_grad_(False)
    model.network(**batch.tensors).backward()
    moving = torch.cat([p.grad.flatten() for p in model.groups(["encoder", "lm_head"])["encoder"]])
    whole = load(base)
    whole.network.train()(**batch.tensors).backward()
    expected = torch.cat([p.grad.flatten() for p in whole.groups(["encoder"])["encoder"]])
    assert torch.allclose(moving, expected, rtol=1e-4, atol=1e-5)
    assert before.shape == gradient(whole).shape


# --- families


def test_families_are_found_by_name_and_by_folder(base: Path) -> None:
    assert family_of(SPEC) is CTC
    assert detect(base) is CTC


def test_the_tiny_bases_are_the_same_bytes_for_the_same_arguments(tmp_path: Path) -> None:
    for kind in ("tiny", "tiny-parakeet"):
        torch.manual_seed(1)
        first = ctc_tiny.make(kind, tmp_path / "a", TEXTS, 7)
        torch.manual_seed(2)
        second = ctc_tiny.make(kind, tmp_path / "b", TEXTS[::-1], 7)
        assert first.name == second.name
        assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}
        assert len({first, ctc_tiny.make(kind, tmp_path / "a", TEXTS, 8)}) == 2


@pytest.mark.parametrize("texts", [[], ["א"], [chr(0x4E00 + n) for n in range(200)], [f"מילה{i}" for i in range(500)]])
@pytest.mark.parametrize("kind", ["tiny", "tiny-parakeet"])
def test_any_texts_get_a_vocabulary(tmp_path: Path, kind: str, texts: list[str]) -> None:
    model = load(ctc_tiny.make(kind, tmp_path, texts, 0))
    assert not round_trip(model, texts).changed
    usual = len(texts) < 200 or "מילה0" in texts
    rows = model.groups(["lm_head"])["lm_head"][1].numel()
    assert rows == (64 if kind == "tiny" else 49) if usual else rows > 200


def test_a_base_without_a_card_can_be_detected_and_loaded(bases: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases("wavlm"), tmp_path / "plain")
    write_json(folder / "extra.json", {})
    assert card_of(folder) is None
    assert detect(folder).load(folder, SPEC, "cpu").transcribe(CLIPS[:1])


def speak(seconds: float) -> Clip:
    return np.zeros(int(seconds * 16_000), np.float32)


def test_silence_is_heard_as_something_finite(base: Path) -> None:
    model = load(base)
    assert len(model.transcribe([speak(1.0), speak(0.01)])) == 2
    assert np.isfinite(model.example(speak(1.0), "lehem").features).all()
    assert model.transcribe([]) == []
