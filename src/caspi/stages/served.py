"""Benchmark a round through a server that runs already.

The first time the server's answers become the round's record, as those of a local benchmark would. A record that is
there stays: then the server is asked all the same, and its answers are held against the record's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caspi.errors import StageFailed
from caspi.files import write_json
from caspi.records.record import Record
from caspi.records.results import Delta
from caspi.records.round_dir import RoundDir
from caspi.serving.client import Answer, check_serves
from caspi.stages.benchmark import CONCURRENCY, ask, benchmark, figures, inputs, predictions_of, tested
from caspi.stages.compare import DECISIVE, compare, recorded_predictions, verdict
from caspi.stages.stage import Stage, alone, perform
from caspi.status import summary

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Check:
    """A server's answers beside those of the record."""

    utterances: int
    differ: list[dict[str, str]]
    """Where the text is another one: id, set, record, server."""
    delta: Delta | None
    """The server minus the record, averaged over the sets; None when nothing differs."""

    @property
    def worse(self) -> bool:
        """Shown to be worse: the whole 95% interval of the paired difference is above zero."""
        return self.delta is not None and verdict(self.delta.difference) == "worse"

    def __str__(self) -> str:
        if self.delta is None:
            return f"the same {self.utterances:,} answers as in the record"
        difference = self.delta.difference
        return (
            f"{len(self.differ):,} of {self.utterances:,} answers differ from the record: WER "
            f"{self.delta.baseline_wer:.3f} there, {self.delta.candidate_wer:.3f} here, "
            f"{100 * difference.value:+.1f} points (95%: {100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
        )


def benchmark_served(round_dir: RoundDir, url: str, concurrency: int = CONCURRENCY) -> str:
    """What the server at `url` makes of the round's test sets, in one line.

    ServerError when it serves another model or can't be used; StageFailed when its answers are worse than those of
    the record. benchmark/served.json has the figures of the last check, and every answer that differs.
    """
    read = inputs(round_dir)
    asyncio.run(check_serves(url, round_dir.path.resolve().name, read["model"]))
    through = Stage("benchmark", inputs, lambda here: benchmark(here, url=url, concurrency=concurrency))
    record, worked = perform(through, round_dir)
    if worked:
        return f"{summary(record)}; recorded"
    with alone(round_dir):
        found = _check(round_dir, record, url, concurrency)
    if found.worse:
        raise StageFailed(f"{url}: {found}: it does not serve what was measured; see benchmark/served.json")
    return f"{summary(record)}; {found}"


def _check(round_dir: RoundDir, record: Record, url: str, concurrency: int) -> Check:
    utterances, answers = tested(round_dir), dict[str, Answer]()

    def on_done(answer: Answer) -> None:
        answers[answer.id] = answer

    seconds = ask(round_dir, url, [utterance for _, utterance in utterances], on_done, concurrency)
    found = held_against(round_dir, recorded_predictions(round_dir), predictions_of(utterances, answers))
    measured = figures([*answers.values()], [utterance for _, utterance in utterances], seconds, concurrency)
    write_json(
        round_dir.folder("benchmark") / "served.json",
        {
            "record": record.digest,
            "worse": found.worse,
            "sentence": str(found),
            "differ": found.differ,
            "figures": measured | {"server": url},
        },
    )
    return found


def held_against(round_dir: RoundDir, recorded: Sequence[Line], served: Sequence[Line]) -> Check:
    """Both have the same utterances in the same order: those of the exported sets."""
    differ = [
        {"id": new["id"], "set": new["set"], "record": old["hypothesis"], "server": new["hypothesis"]}
        for old, new in zip(recorded, served, strict=True)
        if old["hypothesis"] != new["hypothesis"]
    ]
    delta = None
    if differ:
        profiles = round_dir.spec.benchmark.profiles[:1]
        deltas = compare(recorded, served, profiles, round_dir.spec.seed)
        delta = next(one for one in deltas if one.group == DECISIVE)
    return Check(len(served), differ, delta)
