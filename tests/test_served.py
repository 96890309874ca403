"""A benchmark through a server that runs already becomes the record, or is held against it; never of another model."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Form, UploadFile

from caspi.corpus.audio import Clip, decode
from caspi.errors import StageFailed
from caspi.families.base import SAMPLE_RATE, Hypothesis
from caspi.files import folder_digest, read_json
from caspi.records.round_dir import RoundDir
from caspi.serving import server
from caspi.serving.client import ServerError
from caspi.serving.speech import Loaded
from caspi.stages.served import benchmark_served
from tests.command import caspi
from tests.served import Parrot, ready, serving
from tests.test_benchmark import asked, predictions, round_dir, run

__all__ = ["round_dir"]  # the fixture: two test sets, eight clips and a broken one


class Mumbling(Parrot):
    """Says something else about clips that are longer than `above` seconds."""

    def __init__(self, above: float = 0.0, text: str = "אחר") -> None:
        super().__init__()
        self.above, self.text = above, text

    def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
        heard = super().transcribe(clips)
        return [
            replace(one, text=self.text) if len(clip) > self.above * SAMPLE_RATE else one
            for clip, one in zip(clips, heard, strict=True)
        ]


@pytest.fixture
def serve(round_dir: RoundDir, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The app that `caspi serve` makes of a model folder, with a parrot in place of the weights."""

    @contextmanager
    def served(model: Parrot | None = None, folder: Path = round_dir.model) -> Iterator[httpx.Client]:
        loaded = Loaded(model or Parrot(), "Hebrew", digest=folder_digest(folder))  # type: ignore[arg-type]
        monkeypatch.setattr(server, "load_model", lambda _: loaded)
        with serving(server.create_app(folder)) as client:
            yield ready(client)

    return served


def test_the_first_time_it_is_the_record_that_a_local_benchmark_makes(round_dir: RoundDir, serve) -> None:  # type: ignore[no-untyped-def]
    with serve() as client:
        local = run(round_dir, client.base_url)
        whole = predictions(round_dir)
        shutil.rmtree(round_dir.folder("benchmark"))
        said = benchmark_served(round_dir, str(client.base_url))
        record = round_dir.succeeded("benchmark")
        assert record.digest == local.digest
        assert predictions(round_dir) == whole
        assert record.circumstances.figures["server"] == str(client.base_url)
    assert said == "WER loud 0.143 (0.000-0.500), quiet 0.000 (0.000-0.000); recorded"


def test_a_record_stays_and_the_server_is_asked_all_the_same(round_dir: RoundDir, serve) -> None:  # type: ignore[no-untyped-def]
    with serve() as client:
        benchmark_served(round_dir, str(client.base_url))
        path = round_dir.folder("benchmark") / "record.json"
        before = path.read_bytes()
        said = benchmark_served(round_dir, f"{client.base_url}/v1")
        assert asked(client) == 18
    assert said.endswith("; the same 9 answers as in the record")
    assert path.read_bytes() == before
    kept = read_json(round_dir.folder("benchmark") / "served.json")
    assert (kept["record"], kept["worse"], kept["differ"]) == (round_dir.succeeded("benchmark").digest, False, [])
    assert kept["figures"]["utterances"] == 9


def test_answers_that_are_shown_to_be_worse_fail(round_dir: RoundDir, serve) -> None:  # type: ignore[no-untyped-def]
    with serve() as client:
        benchmark_served(round_dir, str(client.base_url))
        whole = predictions(round_dir)
    with serve(Mumbling()) as client, pytest.raises(StageFailed, match="8 of 9 answers differ from the record: WER 0"):
        benchmark_served(round_dir, str(client.base_url))
    assert predictions(round_dir) == whole
    assert round_dir.succeeded("benchmark")
    kept = read_json(round_dir.folder("benchmark") / "served.json")
    assert kept["worse"]
    assert {"id": "quiet/0", "set": "quiet", "record": "0.5 שניות", "server": "אחר"} in kept["differ"]


def test_a_difference_that_shows_nothing_passes_and_is_said(round_dir: RoundDir, serve) -> None:  # type: ignore[no-untyped-def]
    """Another GPU, or another engine, rounds otherwise: now and then a word changes."""
    with serve() as client:
        benchmark_served(round_dir, str(client.base_url))
    with serve(Mumbling(above=1.9, text="2.0 שנייה")) as client:
        said = benchmark_served(round_dir, str(client.base_url))
    assert "; 1 of 9 answers differ from the record: WER 0.071 there, 0.107 here, +3.6 points (95%: +0.0" in said


def test_another_model_is_no_benchmark_of_this_one(round_dir: RoundDir, serve, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = shutil.copytree(round_dir.model, tmp_path / "hebrew-r9-00000000" / "model")
    with serve(folder=other) as client:
        with pytest.raises(ServerError, match=f'no model "{round_dir.path.name}"; it has hebrew-r9-00000000'):
            benchmark_served(round_dir, str(client.base_url))
        assert asked(client) == 0
    with serve() as client:
        (round_dir.model / "config.json").write_text('{"trained": "again"}')
        with pytest.raises(
            ServerError, match=r"is another model \(sha256:.{12}, not sha256:.{12}\): .* restart the ser"
        ):
            benchmark_served(round_dir, str(client.base_url))
        assert asked(client) == 0
    assert round_dir.record("benchmark") is None  # nothing is known about the stage


def test_a_server_that_says_no_digest_is_known_by_its_name(round_dir: RoundDir, serve) -> None:  # type: ignore[no-untyped-def]
    """As vLLM is: text only, and --served-model-name."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> object:
        return {"data": [{"id": round_dir.path.name, "object": "model", "owned_by": "vllm"}]}

    @app.post("/v1/audio/transcriptions")
    def transcriptions(file: UploadFile, model: str = Form(), response_format: str = Form()) -> object:
        assert (model, response_format) == (round_dir.path.name, "json")
        data = file.file.read()
        return {"text": "" if data == b"broken" else f"{len(decode(data)) / SAMPLE_RATE:.1f} שניות"}

    with serving(app) as client:
        first = benchmark_served(round_dir, str(client.base_url))
    assert first.endswith("; recorded")
    with serve() as client:
        assert benchmark_served(round_dir, str(client.base_url)).endswith("; the same 9 answers as in the record")


def test_a_server_that_still_loads_is_waited_for(round_dir: RoundDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not say yet which model it has: the planted fault is that of a folder that changed meanwhile."""
    loading = threading.Event()
    loaded = Loaded(Parrot(), "Hebrew", digest="0" * 64)  # type: ignore[arg-type]
    monkeypatch.setattr(server, "load_model", lambda _: loading.wait(20) and loaded)
    with serving(server.create_app(round_dir.model)) as client:
        assert "digest" not in client.get("/v1/models").json()["data"][0]
        threading.Timer(0.5, loading.set).start()
        with pytest.raises(ServerError, match=r"is another model \(sha256:000000000000"):
            benchmark_served(round_dir, str(client.base_url))


def test_the_commands(round_dir: RoundDir, serve) -> None:  # type: ignore[no-untyped-def]
    where = str(round_dir.path)
    with serve() as client:
        url = str(client.base_url)
        done = caspi("stage", "benchmark", "--round-dir", where, "--server", url)
        assert (done.code, done.out.strip().endswith("; recorded")) == (0, True), done.err
        refused = caspi("stage", "compare", "--round-dir", where, "--server", url)
        assert (refused.code, refused.err) == (2, "--server is for benchmark, not for compare\n")
    gone = caspi("benchmark", where, "--server", "nowhere:80")
    assert (gone.code, gone.err.startswith("'nowhere:80' is no URL of a server")) == (2, True)
