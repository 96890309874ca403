"""A CTC model behind the same server and the same benchmark as any other: checkpoint and base, with a language and
without; and its round from export to scores."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from caspi.corpus.audio import decode
from caspi.errors import UserError
from caspi.families import CARD
from caspi.families.ctc import CTC
from caspi.files import read_json, read_json_lines, write_json
from caspi.records.results import BenchmarkResults
from caspi.records.round_dir import create
from caspi.serving.process import serve_process
from caspi.serving.server import load_model
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.spec.models import CtcModel
from caspi.stages import benchmark, export
from caspi.stages.stage import perform
from tests.served import URL, audio
from tests.standins.corpora import rows, write_parquet
from tests.test_bad_input import changed
from tests.test_benchmark import finish

TEXTS = ["HELLO WORLD", "AND AGAIN", "THE END"] * 4


@pytest.fixture(scope="module", params=["tiny", "tiny-parakeet"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training saves it, with the card of its round."""
    folder = tmp_path_factory.mktemp("ctc")
    spec = CtcModel(family="ctc", base=request.param, language="English")
    base = CTC.prepare(spec, TEXTS, 1, folder)
    CTC.load(base, spec, torch.device("cpu")).save(folder / "toy-r1" / "model")
    return folder / "toy-r1" / "model"


def test_through_a_real_server(trained: Path) -> None:
    clips = [audio(seconds) for seconds in (0.5, 1.3)]
    loaded = load_model(trained)
    assert (loaded.language, loaded.context) == ("English", "")
    direct = [loaded.model.transcribe([decode(clip)])[0] for clip in clips]
    with serve_process(trained) as url, httpx.Client(base_url=url, timeout=60) as client:
        form = {"model": "toy-r1", "response_format": "verbose_json", "language": "en"}
        heard = [client.post(URL, files={"file": clip}, data=form).json() for clip in clips]
        assert [(one["text"], one["raw"], one["language"]) for one in heard] == [
            (one.text, one.raw, "English") for one in direct
        ]
        german = client.post(URL, files={"file": clips[0]}, data={**form, "language": "de"})
        assert (german.status_code, german.json()["error"]["param"]) == (400, "language")


def test_a_base_has_no_card_and_no_language(trained: Path, tmp_path: Path) -> None:
    base = shutil.copytree(trained, tmp_path / "base")
    (base / CARD).unlink()
    loaded = load_model(base)
    assert loaded.language is None
    clip = decode(audio(1.0))
    assert loaded.model.transcribe([clip])[0].text == load_model(trained).model.transcribe([clip])[0].text


def test_a_round_without_a_language_is_served(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "model")
    write_json(folder / CARD, {**read_json(folder / CARD), "language": None})
    assert load_model(folder).language is None


def test_the_card_of_another_family_is_refused(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "model")
    write_json(folder / CARD, {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"})
    with pytest.raises(UserError, match=r"the weights are of the family ctc, and caspi.json says qwen3-asr"):
        load_model(folder)


def test_its_round_from_export_to_scores(trained: Path, tmp_path: Path) -> None:
    """Materialised as WAV with NeMo manifests: an upstream JSONL is for the training script of Qwen3-ASR alone."""
    crowd = [row | {"text": f"Word {chr(65 + n)}"} for n, row in enumerate(rows(20))]
    write_parquet(tmp_path / "crowd" / "a.parquet", crowd)
    write_parquet(tmp_path / "test" / "a.parquet", rows(3))
    values = changed(
        model={"family": "ctc", "base": "tiny"},
        data={
            "sources": [{"name": "crowd", "path": "crowd"}],
            "text": "english-upper-1",
            "materialise": "wav",
            "split": {"eval": 0.2},
        },
    )
    round_dir = create(tmp_path / "runs", parse(values, RoundSpec, "round"), ClusterSpec(), tmp_path)
    perform(export.STAGE, round_dir)
    folder = round_dir.folder("export")
    assert not (folder / "upstream").exists()
    nemo = list(read_json_lines(folder / "nemo" / "train.json"))
    assert {line["text"] for line in nemo} < {f"WORD {chr(65 + n)}" for n in range(20)}
    assert all(Path(line["audio_filepath"]).stat().st_size > 16_000 for line in nemo)

    finish(round_dir, "train", [])
    shutil.copytree(trained, round_dir.model)
    outcome = benchmark.benchmark(round_dir)
    assert isinstance(outcome.results, BenchmarkResults)
    predictions = list(read_json_lines(round_dir.folder("benchmark") / "predictions.jsonl"))
    model = load_model(trained).model
    clip = decode(rows(1)[0]["audio"]["bytes"])
    assert predictions[0]["hypothesis"] == model.transcribe([np.asarray(clip)])[0].text
    assert {score.group for score in outcome.results.scores} >= {"set:test", "all"}
