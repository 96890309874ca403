"""Qwen3-ASR against the package it comes from: same loss, same gradients, same transcripts, same files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from caspi.errors import UserError
from caspi.families import CARD, detect, family_of, qwen3_audio
from caspi.families.base import Clip
from caspi.families.labels import IGNORED, check_labels, label_problems, round_trip
from caspi.families.qwen3_asr import QWEN3_ASR, Qwen3Asr, most_tokens, pad, parse, place_labels
from caspi.families.qwen3_backend import backend
from caspi.spec.models import Qwen3AsrModel

SPEC = Qwen3AsrModel(family="qwen3-asr", base="tiny", language="Hebrew")
WORDS = ("שלום", "עולם", "בית", "ספר", "אחת", "שתיים")
CPU = torch.device("cpu")


def speak(text: str, seconds: float, seed: int = 0) -> Clip:
    """A tone for each word, the rest of the clip noise."""
    random = np.random.default_rng(seed)
    clip = random.normal(0, 0.01, int(seconds * 16_000))
    words = text.split()
    for place, word in enumerate(words):
        part = slice(place * len(clip) // len(words), (place + 1) * len(clip) // len(words))
        time = np.arange(part.stop - part.start) / 16_000
        clip[part] += 0.3 * np.sin(2 * np.pi * (300 + 400 * WORDS.index(word)) * time)
    return clip.astype(np.float32)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return QWEN3_ASR.prepare(SPEC, [" ".join(WORDS)] * 20, 0, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def trained(base: Path) -> Qwen3Asr:
    """After a few steps it writes the prefix and stops by itself."""
    model = load(base)
    random = np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.network.parameters(), lr=3e-3)
    for step in range(45):
        texts = [" ".join(random.choice(WORDS, random.integers(1, 5))) for _ in range(6)]
        lengths = random.uniform(0.3, 0.9, len(texts))
        batch = model.collate(
            [model.example(speak(t, s * len(t.split()), step), t) for t, s in zip(texts, lengths, strict=True)]
        )
        (model.network(**batch.tensors) / batch.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture
def model(base: Path) -> Qwen3Asr:
    return load(base)


@pytest.fixture(scope="session")
def upstream(base: Path):
    """The package's own model of the same weights."""
    return backend().Qwen3ASRForConditionalGeneration.from_pretrained(base, attn_implementation="sdpa").eval()


def load(folder: Path, spec: Qwen3AsrModel = SPEC) -> Qwen3Asr:
    model = QWEN3_ASR.load(folder, spec, CPU)
    assert isinstance(model, Qwen3Asr)
    return model


TEXTS = ["שלום", "בית ספר", "אחת שתיים שלום עולם", "ספר"]
CLIPS = [speak(t, s, i) for i, (t, s) in enumerate(zip(TEXTS, (0.61, 1.0, 3.37, 2.0), strict=True))]


# --- the loss


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_are_those_of_the_package(model: Qwen3Asr, upstream, side: str) -> None:
    examples = [model.example(clip, text) for clip, text in zip(CLIPS, TEXTS, strict=True)]
    batch = model.collate(examples)
    ours = model.network(**batch.tensors)
    ours.backward()

    rows = [[*model._prompt(each.features.shape[1]), *each.labels] for each in examples]
    input_ids, attended = pad(rows, model.tokenizer.pad_token_id, side)
    labels = place_labels(input_ids, attended, [len(each.labels) for each in examples])
    longest = max(each.features.shape[1] for each in examples)
    features = torch.stack(
        [functional.pad(torch.from_numpy(e.features), (0, longest - e.features.shape[1])) for e in examples]
    )
    frames = torch.tensor([each.features.shape[1] for each in examples])
    upstream.zero_grad()
    logits = upstream.thinker(
        input_ids=input_ids,
        attention_mask=attended.long(),
        input_features=features,
        feature_attention_mask=(torch.arange(longest) < frames[:, None]).long(),
    ).logits
    theirs = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    theirs.backward()

    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for (name, mine), (_, other) in zip(
        model.network.thinker.named_parameters(), upstream.thinker.named_parameters(), strict=True
    ):
        assert torch.allclose(mine.grad, other.grad, atol=1e-4, rtol=1e-4), name


def test_the_loss_of_a_batch_is_the_sum_of_its_rows(model: Qwen3Asr) -> None:
    examples = [model.example(clip, text) for clip, text in zip(CLIPS, TEXTS, strict=True)]
    with torch.no_grad():
        whole = model.network(**model.collate(examples).tensors)
        rows = [model.network(**model.collate([each]).tensors) for each in examples]
    assert whole.item() == pytest.approx(sum(row.item() for row in rows), rel=1e-5)


def test_logits_exist_for_labelled_positions_alone(model: Qwen3Asr) -> None:
    batch = model.collate([model.example(clip, text) for clip, text in zip(CLIPS, TEXTS, strict=True)])
    seen = []
    model.network.thinker.lm_head.register_forward_hook(lambda _, __, out: seen.append(out.shape))
    model.network(**batch.tensors)
    assert seen == [(batch.tokens, 512)]


def test_mixed_precision_changes_little_and_leaves_gradients_in_fp32(model: Qwen3Asr) -> None:
    batch = model.collate([model.example(clip, text) for clip, text in zip(CLIPS, TEXTS, strict=True)])
    whole = model.network(**batch.tensors)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.network(**batch.tensors)
        assert len(model.transcribe(CLIPS)) == len(CLIPS)
    half.backward()
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.02)
    assert {p.grad.dtype for p in model.network.parameters()} == {torch.float32}


# --- the audio encoder


@pytest.mark.parametrize("seconds", [[0.1], [0.33, 0.99], [1.0, 2.0], [0.5, 1.7, 3.0, 0.25], [7.99, 1.2]])
def test_encoding_together_is_encoding_clip_by_clip(model: Qwen3Asr, upstream, seconds: list[float]) -> None:
    features = [model._mel(speak("בית", s, i)) for i, s in enumerate(seconds)]
    with torch.no_grad():
        together = qwen3_audio.encode(model.network.thinker.audio_tower, qwen3_audio.pack(features, 8))
        apart = [_tower(upstream, each) for each in features]
    assert [len(each) for each in apart] == [qwen3_audio.audio_tokens(each.shape[1]) for each in features]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)


def test_a_long_clip_is_heard_in_windows_of_8_seconds(model: Qwen3Asr, base: Path) -> None:
    """As FlashAttention 2 and vLLM do; the package forgets its mask on other attention paths."""
    features = [model._mel(speak("בית ספר", 9.7)), model._mel(speak("ספר", 17.0))]
    own = backend().Qwen3ASRForConditionalGeneration.from_pretrained(base, attn_implementation="sdpa").eval()
    with torch.no_grad():
        together = qwen3_audio.encode(model.network.thinker.audio_tower, qwen3_audio.pack(features, 8))
        forgotten = torch.cat([_tower(own, each) for each in features])
        tower = own.thinker.audio_tower
        for layer in tower.layers:
            layer.forward = lambda hidden, bounds, plain=layer.forward: plain(
                hidden, bounds, attention_mask=tower._prepare_attention_mask(hidden, bounds)
            )
        masked = torch.cat([_tower(own, each) for each in features])
    assert torch.allclose(together, masked, atol=1e-5)
    assert (together - forgotten).abs().max() > 1e-3


def _tower(upstream, features: np.ndarray) -> torch.Tensor:
    tower = upstream.thinker.audio_tower
    return tower(torch.from_numpy(features), feature_lens=torch.tensor([features.shape[1]])).last_hidden_state


# --- prompt and labels


@pytest.mark.parametrize("context", ["", "שמות: כספי"])
def test_the_prompt_is_the_chat_template_s(base: Path, context: str) -> None:
    model = load(base, SPEC.model_copy(update={"context": context}))
    processor = backend().Qwen3ASRProcessor.from_pretrained(base)
    turns = [{"role": "system", "content": context}, {"role": "user", "content": [{"type": "audio", "audio": ""}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == (
        f"<|im_start|>system\n{context}<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    for clip in CLIPS:
        theirs = processor(text=[text], audio=[clip], return_tensors="np")
        assert model._prompt(theirs["input_features"].shape[-1]) == theirs["input_ids"][0].tolist()
        assert np.array_equal(theirs["input_features"][0], model._mel(clip))


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_say_the_text_and_nothing_else(model: Qwen3Asr, side: str) -> None:
    examples = [model.example(clip, text) for clip, text in zip(CLIPS, TEXTS, strict=True)]
    rows = [[*model._prompt(each.features.shape[1]), *each.labels] for each in examples]
    input_ids, attended = pad(rows, model.tokenizer.pad_token_id, side)
    labels = place_labels(input_ids, attended, [len(each.labels) for each in examples])
    for row, each in zip(labels, examples, strict=True):
        assert row[row != IGNORED].tolist() == list(each.labels)
    assert label_problems(model, labels, TEXTS) == []


def test_a_batch_passes_the_label_check(model: Qwen3Asr) -> None:
    assert check_labels(model, CLIPS, TEXTS) == []
    batch = model.collate([model.example(clip, text) for clip, text in zip(CLIPS, TEXTS, strict=True)])
    assert batch.tokens == sum(len(model.example(c, t).labels) for c, t in zip(CLIPS, TEXTS, strict=True))
    first = batch.tensors["labels"][0]
    assert model.decode(first[first != IGNORED].tolist()) == "language Hebrew<asr_text>שלום<|im_end|>"


def test_the_label_check_catches_the_upstream_left_padding_bug(model: Qwen3Asr, monkeypatch) -> None:
    """Pad on the left, then mask as many first columns as the prompt is long: what the upstream script does."""
    right = type(model).collate

    def wrong(examples):
        batch = right(model, examples)
        rows = [[*model._prompt(each.features.shape[1]), *each.labels] for each in examples]
        input_ids, attended = pad(rows, model.tokenizer.pad_token_id, side="left")
        labels = torch.where(attended, input_ids, IGNORED)
        for row, each in enumerate(examples):
            labels[row, : len(model._prompt(each.features.shape[1]))] = IGNORED
        return type(batch)({**batch.tensors, "input_ids": input_ids, "labels": labels}, batch.tokens)

    monkeypatch.setattr(model, "collate", wrong)
    problems = check_labels(model, CLIPS, TEXTS)
    # only the longest row is right
    assert [problem.split(":")[0] for problem in problems[:-1]] == ["row 1", "row 2", "row 4"]
    assert "labelled tokens" in problems[-1]


def test_the_label_check_catches_a_missing_end(model: Qwen3Asr, monkeypatch) -> None:
    example = model.example
    monkeypatch.setattr(model, "example", lambda clip, text: type(e := example(clip, text))(e.features, e.labels[:-1]))
    assert len(check_labels(model, CLIPS, TEXTS)) == len(TEXTS)


def test_text_with_a_control_token_is_refused(model: Qwen3Asr) -> None:
    for text in ("שלום<|im_end|>", "<asr_text>", "<|audio_pad|> שלום"):
        with pytest.raises(UserError, match="control token"):
            model.example(CLIPS[0], text)


def test_round_trip(model: Qwen3Asr) -> None:
    clean = round_trip(model, ["שלום עולם", 'ת"א 12, נכון?', "日本語 ok", "רווח  כפול"])
    assert (clean.changed, clean.unknown, clean.unknown_rate) == ([], 0, 0.0)
    assert clean.tokens > 10
    decomposed = "e\u0301"  # the tokenizer composes it: what is learnt is not what the manifest says
    assert round_trip(model, [decomposed]).changed == [(decomposed, "é")]


def test_round_trip_counts_unknown_tokens(model: Qwen3Asr) -> None:
    model.unknown = model.encode("ש")[0]
    assert round_trip(model, ["שש"]).unknown > 0


# --- groups


def test_groups_are_disjoint_and_cover_what_they_name(model: Qwen3Asr) -> None:
    names = ["projector", "llm_top:1", "lm_head", "audio_top:1"]
    groups = model.groups(names)
    assert list(groups) == names
    of = {p.data_ptr(): n for n, p in model.network.thinker.named_parameters()}
    found = {name: {of[p.data_ptr()] for p in group} for name, group in groups.items()}
    assert found["projector"] == {
        f"audio_tower.{module}.{kind}" for module in ("ln_post", "proj1", "proj2") for kind in ("weight", "bias")
    }
    assert found["lm_head"] == {"model.embed_tokens.weight"}
    assert all(name.startswith("model.layers.1.") for name in found["llm_top:1"]) and len(found["llm_top:1"]) == 11
    assert all(name.startswith("audio_tower.layers.1.") for name in found["audio_top:1"])
    assert sum(map(len, groups.values())) == len(set().union(*found.values()))


def test_all_holds_every_parameter_once(model: Qwen3Asr) -> None:
    everything = model.groups(["all"])["all"]
    assert {p.data_ptr() for p in everything} == {p.data_ptr() for p in model.network.parameters()}
    assert len({p.data_ptr() for p in everything}) == len(everything)


def test_a_tied_head_is_said(model: Qwen3Asr) -> None:
    assert model.tied() == ["lm_head is embed_tokens: both move"]
    thinker = model.network.thinker
    thinker.lm_head.weight = torch.nn.Parameter(thinker.lm_head.weight.detach().clone())
    assert model.tied() == []


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["audio_top:40"], '"audio_top:40": the audio encoder has 2 layers'),
        (["llm_top:3"], '"llm_top:3": the language model has 2 layers'),
        (["decoder"], '"decoder" is no group of qwen3-asr'),
        (["all", "projector"], "overlap"),
        (["llm_top:2", "llm_top:1"], "overlap"),
    ],
)
def test_impossible_groups_are_refused(model: Qwen3Asr, names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        model.groups(names)


def test_recomputing_gives_the_same_gradients_to_thawed_top_layers(model: Qwen3Asr) -> None:
    """With the library's default (reentrant), top layers over a frozen bottom silently get none."""
    batch = model.collate([model.example(clip, text) for clip, text in zip(CLIPS, TEXTS, strict=True)])
    top = model.groups(["audio_top:1"])["audio_top:1"]
    model.network.requires_grad_(False)
    for parameter in top:
        parameter.requires_grad_(True)

    def gradients() -> list[torch.Tensor]:
        model.network.train().zero_grad()
        model.network(**batch.tensors).backward()
        return [parameter.grad.clone() for parameter in top]

    plain = gradients()
    model.enable_recompute()
    assert model.network.thinker.audio_tower.layers[1].gradient_checkpointing
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, gradients(), strict=True))
    assert max(grad.abs().max() for grad in plain) > 0


# --- transcripts and files


def test_transcripts_do_not_depend_on_the_company(trained: Qwen3Asr) -> None:
    together = trained.transcribe(CLIPS)
    assert together == [trained.transcribe([clip])[0] for clip in CLIPS]
    assert together == trained.transcribe(CLIPS)
    assert trained.transcribe([]) == []
    assert {each.language for each in together[:2]} == {"Hebrew"}, together


def test_a_model_that_never_ends_stops_at_the_bound_of_each_clip(model: Qwen3Asr, monkeypatch) -> None:
    """One that writes forever would hold a benchmark up forever."""
    written = []
    generate = model.network.generate

    def endless(*given, ends, **named):
        written.extend(generate(*given, ends=(), **named))
        return written

    monkeypatch.setattr(model.network, "generate", endless)
    model.transcribe(CLIPS)
    assert [len(ids) for ids in written] == [most_tokens(len(clip) / 16_000) for clip in CLIPS]


@pytest.mark.parametrize(
    ("raw", "text", "language"),
    [
        ("language Hebrew<asr_text>שלום עולם", "שלום עולם", "Hebrew"),
        ("language Hebrew\n<asr_text> שלום ", "שלום", "Hebrew"),
        ("language None<asr_text>", "", None),
        ("language None<asr_text>שלום", "שלום", None),
        ("שלום", "שלום", None),
        ("", "", None),
        ("<asr_text>שלום<asr_text>", "שלום<asr_text>", None),
        ("language Hebrew<asr_text>" + "לא " * 50, ("לא " * 50).strip(), "Hebrew"),  # a loop is not repaired
    ],
)
def test_parsing(raw: str, text: str, language: str | None) -> None:
    heard = parse(raw)
    assert (heard.text, heard.language, heard.raw) == (text, language, raw)


FRESH = """
import functools, json, sys
import numpy as np, torch
torch.set_num_threads(1)
from qwen_asr import Qwen3ASRModel
folder, clips = sys.argv[1:]
asr = Qwen3ASRModel.from_pretrained(folder)
ends = json.load(open(folder + "/generation_config.json"))["eos_token_id"]
asr.model.generate = functools.partial(asr.model.generate, eos_token_id=ends)  # its default are the real models' ids
raw, infer = [], asr._infer_asr
asr._infer_asr = lambda *given: raw.append(infer(*given)[0]) or raw[-1:]
for limit, clip in np.load(clips).items():
    asr.max_new_tokens = int(limit)
    (heard,) = asr.transcribe((clip, 16000), language=None)
    print(json.dumps([raw[-1], heard.text, heard.language]))
"""


def test_a_checkpoint_loads_in_a_fresh_process_with_qwen_asr(trained: Qwen3Asr, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    np.savez(tmp_path / "clips.npz", **{str(most_tokens(len(clip) / 16_000)): clip for clip in CLIPS})
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH, tmp_path / "model", tmp_path / "clips.npz"],
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    ours = load(tmp_path / "model").transcribe(CLIPS)
    assert [(each.raw, each.language or "") for each in ours] == [(raw, language) for raw, _, language in theirs]
    # The package collapses loops of more than 20; everything else it reads as we do.
    plain = [(each.text, text) for each, (_, text, _) in zip(ours, theirs, strict=True) if len(each.raw) < 60]
    assert len(plain) >= 2 and all(mine == other for mine, other in plain)
    assert ours == trained.transcribe(CLIPS)


def test_a_checkpoint_is_whole_and_the_same_bytes_again(trained: Qwen3Asr, base: Path, tmp_path: Path) -> None:
    trained.save(tmp_path / "a")
    load(tmp_path / "a").save(tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in base.iterdir()} | {CARD}
    assert {"preprocessor_config.json", "chat_template.json", "generation_config.json", "tokenizer.json"} <= names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)

    from safetensors import safe_open

    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert "thinker.model.embed_tokens.weight" in file.keys()  # noqa: SIM118
        assert "thinker.lm_head.weight" not in file.keys()  # noqa: SIM118


def test_a_half_precision_base_is_trained_and_saved_in_fp32(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(base, tmp_path / "bf16")
    tensors = load_file(base / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for part in (
        config,
        config["thinker_config"],
        *(config["thinker_config"][k] for k in ("audio_config", "text_config")),
    ):
        part["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config))
    model, whole = load(folder), load(base)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    for (name, buffer), (_, other) in zip(model.network.named_buffers(), whole.network.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name
    model.save(tmp_path / "saved")
    assert "bfloat16" not in (tmp_path / "saved" / "config.json").read_text()


def _edit(name: str, change):
    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return apply


def _remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def _drop_tensors(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("thinker.audio_tower.proj1.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _natively(folder: Path) -> None:
    """The weights under the names of transformers itself; config.json stays, so only they tell."""
    from safetensors.torch import load_file, save_file

    names = {
        "thinker.audio_tower.proj1": "model.multi_modal_projector.linear_1",
        "thinker.audio_tower.proj2": "model.multi_modal_projector.linear_2",
        "thinker.audio_tower": "model.audio_tower",
        "thinker.model": "model.language_model",
        "thinker.lm_head": "lm_head",
    }
    tensors = load_file(folder / "model.safetensors")
    for ours, theirs in names.items():
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _half_natively(folder: Path) -> None:
    _edit("config.json", lambda c: c.update(c.pop("thinker_config")))(folder)


def _foreign_tokenizer(folder: Path) -> None:
    """As when the tokenizer of another base is copied: its ids lie beyond the embedding."""

    def grow(config: dict) -> None:
        there = len(config["model"]["vocab"]) + len(config["added_tokens"])
        next_id = 1 + max(*config["model"]["vocab"].values(), *(t["id"] for t in config["added_tokens"]))
        like = config["added_tokens"][-1]
        config["added_tokens"] += [{**like, "id": next_id + n, "content": f"<x{n}>"} for n in range(600 - there)]

    _edit("tokenizer.json", grow)(folder)


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_remove("config.json"), "config.json is missing"),
        (_remove("preprocessor_config.json"), "preprocessor_config.json is missing"),
        (_remove("chat_template.json"), "chat_template.json"),
        (_remove("tokenizer.json", "vocab.json"), "tokenizer.json"),
        (_remove("tokenizer_config.json"), "tokenizer_config.json is missing"),
        (_pickle, r"\*.safetensors is missing"),
        (_edit("config.json", lambda c: c.update(model_type="whisper")), "model_type is 'whisper'"),
        (_edit("config.json", lambda c: c.pop("thinker_config")), "layout of transformers itself"),
        (_drop_tensors, "1 missing, for example thinker.audio_tower.proj1.weight"),
        (_edit("config.json", lambda c: c["thinker_config"]["audio_config"].update(d_model=64)), "do not load"),
        (_edit("config.json", lambda c: c["thinker_config"]["text_config"].update(num_hidden_layers=3)), "missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"half"), "do not load"),
        (lambda f: os.truncate(f / "model.safetensors", 1_000_000), "it has 1,000,000 bytes, and its header says"),
        (_natively, r"its weights are named model.audio_tower.\.\.\.\): it would load as random weights"),
        (_half_natively, "the weights are in that of qwen-asr; copy config.json"),
        (_foreign_tokenizer, "the tokenizer has 600 tokens, and the model 512"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    ],
)
def test_what_cannot_be_trained_is_refused(base: Path, tmp_path: Path, damage, said: str) -> None:
    folder = shutil.copytree(base, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(UserError, match=said) as refused:
        load(folder)
    assert all("\n" not in problem for problem in refused.value.problems)


# --- families


def test_families_are_found_by_name_and_by_folder(base: Path, tmp_path: Path) -> None:
    assert family_of(SPEC) is QWEN3_ASR
    assert detect(base) is QWEN3_ASR
    for content, said in (('{"model_type": "whisper"}', "whisper"), ("[]", "model_type is None"), ("{", "JSON")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=said):
            detect(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        detect(tmp_path / "nowhere")


def test_importing_families_needs_no_torch() -> None:
    code = "import sys, caspi.families, caspi.families.counts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_preparing_a_local_base(base: Path, tmp_path: Path) -> None:
    local = SPEC.model_copy(update={"base": str(base)})
    assert QWEN3_ASR.prepare(local, [], 0, tmp_path) == base
    with pytest.raises(UserError, match="no such folder"):
        QWEN3_ASR.prepare(SPEC.model_copy(update={"base": str(tmp_path / "gone")}), [], 0, tmp_path)
