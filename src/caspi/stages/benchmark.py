"""Benchmark: serve the model, transcribe every test set through the server, score what it wrote."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from caspi.corpus.audio import AudioReader
from caspi.corpus.manifest import Utterance, read_manifest
from caspi.corpus.roots import roots
from caspi.errors import UserError
from caspi.files import atomic, digest, folder_digest, json_line
from caspi.progress import progress
from caspi.records.results import BenchmarkResults, Score
from caspi.records.round_dir import RoundDir
from caspi.scoring.loops import loops
from caspi.scoring.scores import score_predictions
from caspi.serving.client import Answer, Item, transcribe_all
from caspi.serving.process import serve_process
from caspi.spec.data import Target
from caspi.stages.stage import Outcome, Stage

CONCURRENCY = 16
LOG = "server.log"


def inputs(round_dir: RoundDir) -> dict[str, str]:
    """The test sets as exported, and the model: whatever else changes, the benchmark stands."""
    export = round_dir.succeeded("export")
    round_dir.succeeded("train")
    if not (round_dir.model / "config.json").is_file():
        raise UserError("no model there; delete train/record.json and run the round again", where=str(round_dir.model))
    sets = {f"export/{name}": sha for name, sha in export.outputs.items() if name.startswith("sets/")}
    audio = {f"data {one.name}" for one in round_dir.spec.benchmark.sets} & export.inputs.keys()
    return sets | {name: export.inputs[name] for name in audio} | {"model": folder_digest(round_dir.model)}


def work(round_dir: RoundDir) -> Outcome:
    return benchmark(round_dir)


def benchmark(round_dir: RoundDir, *, url: str | None = None, concurrency: int = CONCURRENCY) -> Outcome:
    """Benchmark the model of a round; with `url` through a server elsewhere that serves the same model."""
    folder, spec, read = round_dir.folder("benchmark"), round_dir.spec, inputs(round_dir)
    utterances = tested(round_dir)
    answers = Answers(folder / "partial.jsonl", digest(read))
    left = [utterance for _, utterance in utterances if utterance.id not in answers.by_id]
    seconds = 0.0
    if left:
        with _server(round_dir, url) as address:
            seconds = ask(round_dir, address, left, answers.add, concurrency, done=len(answers.by_id))

    predictions = predictions_of(utterances, answers.by_id)
    with atomic(folder / "predictions.jsonl") as file:
        file.writelines(map(json_line, predictions))
    answers.forget()
    (folder / LOG).unlink(missing_ok=True)  # it was for a server that fails
    scores = score_predictions(predictions, spec.benchmark.profiles, spec.seed)
    everyone = [answers.by_id[utterance.id] for _, utterance in utterances]
    return Outcome(
        results=BenchmarkResults(
            model=read["model"],
            scores=scores,
            loops=sum(loops(prediction["raw"]) for prediction in predictions),
            empty=sum(not prediction["hypothesis"].strip() for prediction in predictions),
            target_met=target_met(scores, spec.benchmark.profiles[0], spec.benchmark.target),
        ),
        outputs=["predictions.jsonl"],
        figures=figures(everyone, left, seconds, concurrency) | ({"server": url} if url else {}),
    )


STAGE = Stage(name="benchmark", inputs=inputs, work=work)


class Answers:
    """The answers so far, also on disk, so that a killed benchmark goes on where it was.

    The first line says which inputs they belong to; answers to others are forgotten, and so is a torn last line.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self.by_id = {answer.id: answer for answer in _kept(path, identity)}
        with atomic(path) as file:
            file.write(json_line({"inputs": identity}))
            file.writelines(json_line(asdict(answer)) for answer in self.by_id.values())
        self._file = path.open("a", encoding="utf-8")

    def add(self, answer: Answer) -> None:
        self.by_id[answer.id] = answer
        self._file.write(json_line(asdict(answer)))
        self._file.flush()

    def forget(self) -> None:
        """Everything is written elsewhere."""
        self._file.close()
        self._path.unlink()


def _kept(path: Path, identity: str) -> list[Answer]:
    if not path.exists():
        return []
    head, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]  # what follows the last newline is torn
    if head + b"\n" != json_line({"inputs": identity}).encode():
        return []
    return [Answer(**json.loads(line)) for line in lines]


def target_met(scores: Sequence[Score], profile: str, target: Target | None) -> bool | None:
    """Whether the WER averaged over the sets reaches the round's target; None without one."""
    if target is None:
        return None
    average = next(score for score in scores if score.group == "average" and score.profile == profile)
    return 100 * average.wer.value <= target.at_most


def tested(round_dir: RoundDir) -> list[tuple[str, Utterance]]:
    """Every utterance of the test sets as exported, with the name of its set."""
    folder = round_dir.folder("export") / "sets"
    sets = [one.name for one in round_dir.spec.benchmark.sets]
    return [(name, utterance) for name in sets for utterance in read_manifest(folder / f"{name}.jsonl")]


def ask(
    round_dir: RoundDir,
    url: str,
    utterances: Sequence[Utterance],
    on_done: Callable[[Answer], None],
    concurrency: int,
    *,
    done: int = 0,
) -> float:
    """Send the audio of test utterances to a server; how many seconds it took. `done` were answered before."""
    names = {one.name for one in round_dir.spec.benchmark.sets}  # the training data may be elsewhere by now
    reader = AudioReader(roots(round_dir.spec, round_dir.data_root, round_dir.folder("export"), only=names))
    items = [Item(utterance.id, partial(reader.encoded, utterance.audio)) for utterance in utterances]
    begun = time.monotonic()
    with progress("benchmark", done + len(items), "utterances", initial=done) as bar:

        def answered(answer: Answer) -> None:
            on_done(answer)
            bar.update()

        asyncio.run(transcribe_all(url, items, concurrency=concurrency, on_done=answered))
    return time.monotonic() - begun


def _server(round_dir: RoundDir, url: str | None) -> AbstractContextManager[str]:
    if url:
        return nullcontext(url)
    return serve_process(round_dir.model, log=round_dir.folder("benchmark") / LOG)


def predictions_of(utterances: Sequence[tuple[str, Utterance]], answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl, by set and id."""
    predictions = [_prediction(name, utterance, answers[utterance.id]) for name, utterance in utterances]
    return sorted(predictions, key=lambda prediction: (prediction["set"], prediction["id"]))


def _prediction(name: str, utterance: Utterance, answer: Answer) -> dict[str, Any]:
    line = {
        "id": utterance.id,
        "set": name,
        "domain": utterance.domain,
        "reference": utterance.text,
        "hypothesis": answer.text,
        "raw": answer.raw,
        "seconds": utterance.seconds,
        "audio": utterance.audio,
    }
    return line | ({"error": answer.error} if answer.error else {})


def figures(
    answers: Sequence[Answer], transcribed: Sequence[Utterance], seconds: float, concurrency: int
) -> dict[str, Any]:
    """Latency of all requests; throughput of those of this run."""
    audio_seconds = sum(utterance.seconds for utterance in transcribed)
    p50, p90, p99 = np.percentile([answer.seconds for answer in answers], (50, 90, 99)) if answers else (0.0,) * 3
    return {
        "concurrency": concurrency,
        "utterances": len(transcribed),
        "audio_seconds": round(audio_seconds, 3),
        "seconds": round(seconds, 3),
        "rtfx": round(audio_seconds / seconds, 2) if seconds else None,
        "latency": {"p50": round(float(p50), 4), "p90": round(float(p90), 4), "p99": round(float(p99), 4)},
        "refused": sum(answer.error is not None for answer in answers),
    }
