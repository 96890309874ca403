"""The benchmark stage against a real server: what it writes, and that a killed one goes on to the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caspi.corpus.audio import Clip
from caspi.corpus.manifest import Utterance, write_manifest
from caspi.errors import UserError
from caspi.families.base import SAMPLE_RATE, Hypothesis
from caspi.files import file_digest, read_json_lines
from caspi.records.record import Circumstances, Record, StageName, read_record, write_record
from caspi.records.results import BenchmarkResults, Estimate, Score
from caspi.records.round_dir import RoundDir, create
from caspi.serving.client import Answer, ServerError
from caspi.serving.server import create_app
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.spec.data import Target
from caspi.stages import benchmark as stage
from caspi.stages.stage import Stage, perform
from tests.served import Parrot, audio, parrot, ready, serving, until
from tests.test_bad_input import changed

SECONDS = [0.5, 0.8, 1.1, 1.4, 1.7, 2.0, 0.7, 0.9]


@pytest.fixture
def round_dir(tmp_path: Path) -> RoundDir:
    """A round whose export and training are done: two test sets, eight clips and a broken one."""
    spec = changed(
        benchmark={
            "sets": [{"name": "quiet", "path": "quiet", "domain": "studio"}, {"name": "loud", "path": "loud"}],
            "target": {"at_most": 26},
        }
    )
    made = create(tmp_path / "runs", parse(spec, RoundSpec, "good"), ClusterSpec(), tmp_path)
    for name, seconds in (("quiet", SECONDS[:4]), ("loud", SECONDS[4:])):
        (tmp_path / name).mkdir()
        lines = []
        for number, one in enumerate(seconds):
            (tmp_path / name / f"{number}.wav").write_bytes(audio(one))
            lines.append(utterance(name, number, f"{one:.1f} שניות", one))
        if name == "loud":
            (tmp_path / name / "4.wav").write_bytes(b"broken")
            lines.append(utterance(name, 4, "two words", 1.0))
        write_manifest(made.folder("export") / "sets" / f"{name}.jsonl", reversed(lines))
    finish(made, "export", [f"sets/{name}.jsonl" for name in ("quiet", "loud")])
    finish(made, "train", [])
    made.model.mkdir()
    (made.model / "config.json").write_text("{}")
    return made


def utterance(name: str, number: int, text: str, seconds: float) -> Utterance:
    return Utterance(
        f"{name}/{number}", f"{name}/{number}.wav", text, seconds, name, "studio" if name == "quiet" else "x"
    )


def finish(round_dir: RoundDir, name: StageName, outputs: list[str]) -> None:
    folder = round_dir.folder(name)
    folder.mkdir(exist_ok=True)
    record = Record(
        stage=name,
        status="succeeded",
        round=round_dir.spec.round,
        spec=round_dir.spec.digest,
        seed=1,
        inputs={"data quiet": "1", "data loud": "2", "data crowd": "3"} if name == "export" else {},
        outputs={output: file_digest(folder / output) for output in outputs},
        circumstances=Circumstances(started="", seconds=0, host="", git=None, versions={}),
    )
    write_record(folder / "record.json", record)


def run(round_dir: RoundDir, url: object) -> Record:
    """The stage as it is performed, but on a server that runs already."""
    through = Stage("benchmark", stage.inputs, lambda here: stage.benchmark(here, url=str(url), concurrency=3))
    record, worked = perform(through, round_dir)
    assert worked
    return record


def predictions(round_dir: RoundDir) -> bytes:
    return (round_dir.folder("benchmark") / "predictions.jsonl").read_bytes()


class Forgetful(Parrot):
    """Drops the second word of long clips, and goes round in circles on the longest."""

    def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
        heard = super().transcribe(clips)
        for place, (clip, one) in enumerate(zip(clips, heard, strict=True)):
            if len(clip) > 1.9 * SAMPLE_RATE:
                heard[place] = replace(one, text="", raw="language Hebrew<asr_text>" + "אז " * 40)
            elif len(clip) > 1.2 * SAMPLE_RATE:
                heard[place] = replace(one, text=one.text.split()[0])
        return heard


def test_what_it_writes(round_dir: RoundDir) -> None:
    model = Forgetful()
    with serving(create_app(model=model, language="Hebrew")) as client:  # type: ignore[arg-type]
        record = run(round_dir, ready(client).base_url)

    lines = list(read_json_lines(round_dir.folder("benchmark") / "predictions.jsonl"))
    assert [line["id"] for line in lines] == [f"loud/{n}" for n in range(5)] + [f"quiet/{n}" for n in range(4)]
    assert lines[5] == {
        "id": "quiet/0",
        "set": "quiet",
        "domain": "studio",
        "reference": "0.5 שניות",
        "hypothesis": "0.5 שניות",
        "raw": "language Hebrew<asr_text>0.5 שניות",
        "seconds": 0.5,
        "audio": "quiet/0.wav",
    }
    assert "not decodable" in lines[4]["error"]
    assert (lines[4]["hypothesis"], lines[4]["raw"]) == ("", "")

    results = BenchmarkResults.model_validate(record.results)
    assert record.outputs == {"predictions.jsonl": file_digest(round_dir.folder("benchmark") / "predictions.jsonl")}
    assert set(record.inputs) == {
        "export/sets/quiet.jsonl",
        "export/sets/loud.jsonl",
        "data quiet",
        "data loud",
        "model",
    }
    assert results.model == record.inputs["model"]
    assert results.loops == 1  # seen on raw output: its text is empty
    assert results.empty == 2
    wer = {score.group: score.wer.value for score in results.scores}
    # by hand, 3 words a clip ("0 5 שניות"): quiet drops 1 (1.4 s); loud drops 1 (1.7 s), 3 (2.0 s) and 2 (broken)
    assert wer["set:quiet"] == pytest.approx(1 / 12)
    assert wer["set:loud"] == pytest.approx(6 / 14)
    assert wer["average"] == pytest.approx((1 / 12 + 6 / 14) / 2)
    assert results.target_met is True
    assert not (round_dir.folder("benchmark") / "partial.jsonl").exists()

    figures = record.circumstances.figures
    assert figures["concurrency"] == 3
    assert figures["utterances"] == 9
    assert figures["refused"] == 1
    assert figures["audio_seconds"] == pytest.approx(sum(SECONDS) + 1)
    assert figures["rtfx"] == pytest.approx(figures["audio_seconds"] / figures["seconds"], rel=0.01)
    assert 0 < figures["latency"]["p50"] <= figures["latency"]["p90"] <= figures["latency"]["p99"]


def test_the_same_bytes_again(round_dir: RoundDir) -> None:
    with parrot() as (client, _):
        first = run(round_dir, client.base_url)
        before = predictions(round_dir)
        (round_dir.folder("benchmark") / "record.json").unlink()
        (round_dir.folder("benchmark") / "predictions.jsonl").unlink()
        assert run(round_dir, client.base_url).digest == first.digest
        assert predictions(round_dir) == before


def test_kill_9_and_again_is_the_same_and_nothing_is_asked_twice(round_dir: RoundDir) -> None:
    folder = round_dir.folder("benchmark")
    with parrot() as (client, model):
        run(round_dir, client.base_url)
        whole = predictions(round_dir)
        for name in ("record.json", "predictions.jsonl"):
            (folder / name).unlink()

        script = f"""
            import pathlib
            from caspi.records.round_dir import open_round
            from caspi.stages.benchmark import benchmark
            benchmark(open_round(pathlib.Path({str(round_dir.path)!r})), url={str(client.base_url)!r}, concurrency=1)
        """
        model.stops_at = len(model.calls) + 3  # the benchmark is killed while it waits for its fourth answer
        victim = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
        until(lambda: not model.gate.is_set())
        victim.kill()
        assert victim.wait() == -signal.SIGKILL
        model.gate.set()
    kept = (folder / "partial.jsonl").read_bytes()
    assert kept.count(b"\n") == 1 + 3  # a line about the inputs, and three answers
    with (folder / "partial.jsonl").open("ab") as file:
        file.write(b'{"id":"loud/3","te')  # torn by the kill
    with parrot() as (client, _):
        record = run(round_dir, client.base_url)
        assert asked(client) == 9 - 3
    assert predictions(round_dir) == whole
    assert record.circumstances.figures["utterances"] == 9 - 3


def asked(client: Any) -> int:
    lines = client.get("/metrics").text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("caspi_requests_total{")))


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", 0),
        (b'{"inputs":"mine"}', 0),  # torn in its first line
        (b'{"inputs":"mine"}\n', 0),
        (b'{"inputs":"other"}\n{"id":"a","text":"t","raw":"r","seconds":1.0,"error":null}\n', 0),
        (b'{"inputs":"mine"}\n{"id":"a","text":"t","raw":"r","seconds":1.0,"error":null}\n', 1),
        (b'{"inputs":"mine"}\n{"id":"a","text":"t","raw":"r","seconds":1.0,"error":null}\n{"id":"b","text"', 1),
        (b'{"inputs":"mine"}\n{"id":"a","text":"t","raw":"r","seconds":1.0,"error":null}\n{"id":"b","text":"\xd7', 1),
    ],
)
def test_answers_kept_on_disk(tmp_path: Path, content: bytes, kept: int) -> None:
    path = tmp_path / "partial.jsonl"
    path.write_bytes(content)
    answers = stage.Answers(path, "mine")
    assert list(answers.by_id) == ["a"][:kept]
    answers.add(Answer("c", "שלום", "raw", 0.5))
    again = stage.Answers(path, "mine")
    assert again.by_id == answers.by_id
    again.forget()
    assert not path.exists()


def test_another_model_starts_anew(round_dir: RoundDir) -> None:
    folder = round_dir.folder("benchmark")
    with parrot() as (client, _):
        run(round_dir, client.base_url)
        (round_dir.model / "config.json").write_text('{"other": 1}')
        run(round_dir, client.base_url)
        assert asked(client) == 18
    assert read_record(folder / "record.json") is not None


def test_a_server_that_dies_fails_the_stage_with_one_line(round_dir: RoundDir) -> None:
    class Poisoned(Parrot):
        def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
            if any(abs(len(clip) / SAMPLE_RATE - 1.1) < 0.01 for clip in clips):
                raise RuntimeError("out of memory")
            return super().transcribe(clips)

    with serving(create_app(model=Poisoned())) as client, pytest.raises(ServerError, match="out of memory"):  # type: ignore[arg-type]
        run(round_dir, ready(client).base_url)
    record = round_dir.record("benchmark")
    assert record is not None and record.status == "failed"
    assert record.error is not None and "status 500 for quiet/2" in record.error


def test_what_must_come_before(round_dir: RoundDir) -> None:
    (round_dir.model / "config.json").unlink()
    with pytest.raises(UserError, match="no model there"):
        stage.inputs(round_dir)
    (round_dir.folder("train") / "record.json").unlink()
    with pytest.raises(UserError, match="stage train has not run"):
        stage.inputs(round_dir)


@pytest.mark.parametrize(
    ("target", "met"),
    [(None, None), (Target(at_most=11.5), True), (Target(at_most=11.4), False), (Target(at_most=90, goal=1), True)],
)
def test_the_target_is_for_the_average_of_the_sets_under_the_first_profile(
    target: Target | None, met: bool | None
) -> None:
    def score(group: str, profile: str, wer: float) -> Score:
        rate = Estimate(value=wer, low=wer, high=wer)
        counts = {"utterances": 1, "words": 1, "substitutions": 0, "deletions": 0, "insertions": 0}
        return Score(group=group, profile=profile, wer=rate, cer=rate, **counts)

    scores = [score("all", "plain", 0.9), score("average", "hebrew-fair", 0.01), score("average", "plain", 0.115)]
    assert stage.target_met(scores, "plain", target) is met
