"""A base of another family, layout or vocabulary: one line each, before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from caspi.errors import UserError
from caspi.families import card_of, family_of
from caspi.files import write_json
from caspi.spec.models import CtcModel, Qwen3AsrModel

TEXTS = ["shalom olam", "bayit sefer"] * 10
QWEN = Qwen3AsrModel(family="qwen3-asr", base="tiny", language="Hebrew")
CTC = CtcModel(family="ctc", base="tiny", language="Hebrew")
PARAKEET = CtcModel(family="ctc", base="tiny-parakeet", language="Hebrew")
KINDS = {"qwen3-asr": QWEN, "wav2vec2": CTC, "parakeet": PARAKEET}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases")
    return {name: family_of(spec).prepare(spec, TEXTS, 0, folder / name) for name, spec in KINDS.items()}


def refusal(spec: Qwen3AsrModel | CtcModel, folder: Path) -> str:
    """What both `prepare` (a local base) and `load` (a parent's model) say; the same, in one line."""
    said = []
    local = spec.model_copy(update={"base": str(folder)})
    for attempt in (
        lambda: family_of(spec).prepare(local, TEXTS, 0, folder.parent / "made"),
        lambda: family_of(spec).load(folder, local, "cpu"),
    ):
        with pytest.raises(UserError) as refused:
            attempt()
        said.append(str(refused.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    return said[0]


@pytest.mark.parametrize(
    ("family", "kind", "says"),
    [
        ("qwen3-asr", "wav2vec2", "model_type is 'wav2vec2', and qwen3-asr loads qwen3_asr; set model.family"),
        ("qwen3-asr", "parakeet", "model_type is 'parakeet_ctc', and qwen3-asr loads qwen3_asr; set model.family"),
        ("wav2vec2", "qwen3-asr", "model_type is 'qwen3_asr', and ctc loads wav2vec2"),
    ],
)
def test_a_base_of_another_family(bases: dict[str, Path], family: str, kind: str, says: str) -> None:
    assert says in refusal(KINDS[family], bases[kind])


def test_a_base_of_its_own_family_is_taken(bases: dict[str, Path], tmp_path: Path) -> None:
    """The twin of the refusals: each folder as it was made."""
    for kind, spec in KINDS.items():
        local = spec.model_copy(update={"base": str(bases[kind])})
        assert family_of(spec).prepare(local, TEXTS, 0, tmp_path) == bases[kind]


@pytest.mark.parametrize("kind", ["wav2vec2", "parakeet"])
def test_the_vocabulary_of_another_base(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """More tokens than the head has rows: an index error, or worse, if it were trained."""
    folder = shutil.copytree(bases[kind], tmp_path / "base")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(folder / "config.json", {**config, "vocab_size": config["vocab_size"] - 3})
    with pytest.raises(UserError) as refused:
        family_of(KINDS[kind]).load(folder, KINDS[kind], "cpu")
    assert all("\n" not in problem for problem in refused.value.problems)


def test_a_card_that_is_no_card(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["wav2vec2"], tmp_path / "base")
    assert card_of(folder) is None, "a base model has none"
    (folder / "caspi.json").write_text('{"family": "whisper"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"caspi\.json: .*copy it from where the model was made") as refused:
        card_of(folder)
    assert "\n" not in str(refused.value)
