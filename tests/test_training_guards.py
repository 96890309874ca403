"""What a round refuses before its first step: text that the model can't spell, and utterances that it can't learn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from caspi.corpus.manifest import Utterance
from caspi.errors import UserError
from caspi.families import family_of
from caspi.families.base import Model, Speller
from caspi.families.labels import MANY_TEXTS, check_labels, round_trip
from caspi.spec.models import CtcModel, ModelSpec, Qwen3AsrModel
from caspi.training.guards import check_spelling, trainable
from tests.toy_family import ToyFamily, ToyModel
from tests.training_work import spec_of, trained_by, work_in

TEXTS = ["AN ARMY IS COMING", "THE BOY SAID", "DON'T STOP", "ALL WELL, 12 HILLS"]
SPECS: dict[str, ModelSpec] = {
    "qwen3": Qwen3AsrModel(family="qwen3-asr", base="tiny", language="English"),
    "wav2vec2": CtcModel(family="ctc", base="tiny"),
    "parakeet": CtcModel(family="ctc", base="tiny-parakeet"),
}
UPPER = "|ABCDEFGHIJKLMNOPQRSTUVWXYZ'"


class Letters:
    """Spells character by character, as the vocabulary of wav2vec2-large-960h does."""

    unknown: int | None = 3

    def __init__(self, letters: str = UPPER) -> None:
        self.letters = letters

    def encode(self, text: str) -> list[int]:
        return [self.letters.find(char) + 4 if char in self.letters else 3 for char in text.replace(" ", "|")]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("<unk>" if one == 3 else self.letters[one - 4] for one in ids).replace("|", " ")

    def written(self, text: str) -> str:
        return text


class Squeezed(Letters):
    """Merges doubled letters when it decodes, as CTC tokenizers do by default: no unknown token tells of it."""

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode([one for n, one in enumerate(ids) if n == 0 or one != ids[n - 1]])


class Entangled(Letters):
    """Spells a word differently after a certain one: words don't stand by themselves."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.replace("THE END", "THE ~ND"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("bases")
    found = {}
    for name, spec in SPECS.items():
        family = family_of(spec)
        found[name] = family.load(family.prepare(spec, TEXTS, 0, folder), spec, "cpu")
    return found


# --- spelling


@pytest.mark.parametrize(
    ("speller", "texts", "said"),
    [
        (
            Letters(),
            ["an army is coming the boy said"],
            r"lower-case text against an upper-case vocabulary: 80% of the tokens are unknown "
            r"\(a c g h i m n o r s t y\): WER would stay at 1.0; write it in capitals, .*english-upper-1",
        ),
        (Letters(), ["שלום"], r"^100% of the tokens are unknown \(ו ל ם ש\): WER would .* choose text rules"),
        (Letters(), ["MIXED cAsE"], "lower-case text"),
        (Letters(UPPER.lower()), ["HELLO"], r"^100% of the tokens are unknown \(E H L O\)"),
        (Squeezed(), ["ALL WELL"], r"the tokenizer gives 1 of 1 texts back changed \('ALL WELL' as 'AL WEL'\)"),
    ],
)
def test_what_can_not_be_spelt_is_refused(speller: Speller, texts: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_spelling(speller, texts)
    with pytest.raises(UserError):  # and among many that are fine, word by word
        check_spelling(speller, [*texts * MANY_TEXTS, *(f"{texts[0]} {_word(n)}" for n in range(MANY_TEXTS + 1))])


def test_what_can_be_spelt_passes() -> None:
    check_spelling(Letters(), ["AN ARMY IS COMING", "DON'T"])
    check_spelling(Letters(), [])


def test_a_rare_unknown_character_is_no_reason_to_refuse() -> None:
    """At most 2% of the tokens: the model learns <unk> there. One more, and it is refused."""
    check_spelling(Letters(), ["A" * 98 + "éé"])
    with pytest.raises(UserError, match=r"3% of the tokens are unknown \(é\)"):
        check_spelling(Letters(), ["A" * 97 + "ééé"])


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_family_gives_its_texts_back(name: str, models: dict[str, Model]) -> None:
    check_spelling(models[name], TEXTS)


def test_the_seed_s_bug_in_real_tokenizers(models: dict[str, Model]) -> None:
    """Text in lower case, a vocabulary in upper case; a tokenizer of bytes spells everything."""
    lower = [text.lower() for text in TEXTS]
    for name in ("wav2vec2", "parakeet"):
        with pytest.raises(UserError, match="lower-case text against an upper-case vocabulary"):
            check_spelling(models[name], lower)
    check_spelling(models["qwen3"], lower)


@pytest.mark.parametrize("name", ["wav2vec2", "parakeet"])
def test_ctc_labels_are_the_text_and_nothing_else(name: str, models: dict[str, Model]) -> None:
    clips = [np.random.default_rng(n).normal(0, 0.1, 30_000 + n).astype(np.float32) for n in range(len(TEXTS))]
    model = models[name]
    assert check_labels(model, clips, TEXTS) == []
    batch = model.collate([model.example(clip, text) for clip, text in zip(clips, TEXTS, strict=True)])
    assert batch.tokens == sum(len(model.encode(text)) for text in TEXTS)


# --- word by word


def _word(number: int) -> str:
    return "".join(chr(65 + int(digit)) for digit in str(number))


def _many(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    words = [_word(int(number)) for number in rng.integers(0, 50_000, 8 * count)]
    return [" ".join(words[8 * n : 8 * n + 8]) for n in range(count)]


@pytest.mark.parametrize("name", sorted(SPECS))
def test_word_by_word_is_the_same(name: str, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """The token counts of many texts are those of the texts one by one, but for the space before each first word."""
    texts = [*_many(150), *TEXTS, "éB É", "ONE, TWO; 3 FOUR!"]
    whole = round_trip(models[name], texts)
    monkeypatch.setattr("caspi.families.labels.MANY_TEXTS", 0)
    by_word = round_trip(models[name], texts)
    assert (whole.kind, by_word.kind) == ("texts", "words")
    assert (by_word.unknown, bool(by_word.lossy)) == (whole.unknown, bool(whole.lossy))
    assert abs(by_word.tokens - whole.tokens) <= len(texts)


def test_word_by_word_in_any_alphabet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary without Latin letters, and one that can spell nothing of it."""
    monkeypatch.setattr("caspi.families.labels.MANY_TEXTS", 0)
    hebrew = ["שלום עולם", "בית ספר"]
    found = round_trip(Letters("|" + "".join(chr(code) for code in range(0x05D0, 0x05EB))), hebrew)
    assert (found.kind, found.unknown, found.changed) == ("words", 0, [])
    assert round_trip(Letters(), hebrew).unknown == 14


def test_words_that_do_not_stand_alone_are_spelt_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: a tokenizer that no comparison would find out by words."""
    monkeypatch.setattr("caspi.families.labels.MANY_TEXTS", 0)
    texts = ["THE END", "AN END"]
    assert round_trip(Letters(), texts).kind == "words"
    found = round_trip(Entangled(), texts)
    assert (found.kind, found.unknown) == ("texts", 1)


def test_200_000_texts_take_seconds(models: dict[str, Model]) -> None:
    """One by one it would be a minute. The bound is for a busy machine."""
    texts = _many(200_000)
    start = time.perf_counter()
    assert round_trip(Letters("|ABCDEFGHIJ"), texts).unknown == 0
    assert time.perf_counter() - start < 10


# --- what can be learnt


class Slow(ToyModel):
    """Needs a tenth of a second for a character."""

    def __init__(self) -> None:
        pass

    def unfit(self, seconds: float, text: str) -> str | None:
        return "too much text" if seconds < 0.1 * len(text) else None


def _utterance(name: str, text: str, seconds: float) -> Utterance:
    return Utterance(name, name, text, seconds, "crowd", "general")


def test_what_can_not_be_learnt_is_left_out_and_counted() -> None:
    given = [_utterance("a", "abcde", 0.6), _utterance("b", "abcde", 0.4), _utterance("c", "ab", 0.2)]
    chosen, left_out = trainable(Slow(), given, 1.0)
    assert ([one.id for one in chosen], left_out) == (["a", "c"], {"too much text": 1})
    chosen, left_out = trainable(Slow(), given, 1.1)  # at the highest speed c is too short
    assert ([one.id for one in chosen], left_out) == (["a"], {"too much text": 2})
    assert trainable(Slow(), given[:1], 1.0) == (given[:1], {})


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match="no utterance can be trained on: too much text 2; look at audio and text"):
        trainable(Slow(), [_utterance("a", "abcde", 0.4), _utterance("b", "abcde", 0.4)], 1.0)


@pytest.mark.parametrize("name", ["wav2vec2", "parakeet"])
def test_ctc_needs_a_frame_for_each_label(name: str, models: dict[str, Model]) -> None:
    """What is called fit has a finite loss, what is called unfit has none: both sides of the border."""
    model, text = models[name], "ALL WELL ALL WELL"
    for seconds in (0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.7, 1.0):
        clip = np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)
        batch = model.collate([model.example(clip, text)])
        with torch.no_grad():
            loss = float(model.network(**batch.tensors))
        assert (model.unfit(seconds, text) is None) == (loss > 0), seconds  # an impossible one counts as 0


# --- in the engine


class SlowFamily(ToyFamily):
    def load(self, folder: Path, spec: object, device: torch.device) -> ToyModel:
        model = super().load(folder, spec, device)
        model.unfit = lambda seconds, text: "too short" if seconds < 0.6 else None  # type: ignore[method-assign]
        return model


def test_training_leaves_out_what_can_not_be_learnt(tmp_path: Path) -> None:
    spec = spec_of(phases=[{"name": "full", "epochs": 1, "rates": {"all": 5e-3}}])
    work = work_in(tmp_path, family=SlowFamily(), spec=spec)
    short = sum(one.seconds < 0.6 for one in work.train)
    trained = trained_by(work)
    assert trained.left_out == {"too short": short}
    assert trained.steps == -(-(len(work.train) - short) // 8) > 0
    assert trained_by(work_in(tmp_path / "all", spec=spec)).left_out == {}


class MuteFamily(ToyFamily):
    def load(self, folder: Path, spec: object, device: torch.device) -> ToyModel:
        model = super().load(folder, spec, device)
        model.decode = lambda ids: bytes(ids).decode().upper()  # type: ignore[method-assign]
        return model


def test_training_refuses_what_can_not_be_spelt(tmp_path: Path) -> None:
    work = work_in(tmp_path, family=MuteFamily())
    with pytest.raises(UserError, match="back changed"):
        trained_by(work)
    assert not (tmp_path / "train" / "checkpoints").exists()
