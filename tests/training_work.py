"""A small piece of training work for the engine's tests: sounds that can be told apart, and a spec to train on them.

Run as a program it trains; that is what gets killed, and what torchrun starts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from caspi.corpus.audio import AudioError
from caspi.corpus.manifest import Utterance
from caspi.errors import CaspiError
from caspi.families.base import Clip, Family
from caspi.spec import ClusterSpec, RoundSpec
from caspi.training.distributed import processes
from caspi.training.engine import Trained, Work, train
from tests.toy_family import ToyFamily

WORDS = ("shalom", "mayim", "lehem", "bayit", "yeled", "shemesh")


class Tones:
    """Stands in for the disk: each word is a chord, each utterance a length and a little noise of its own."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.broken = broken

    def read(self, audio: str) -> Clip:
        if audio in self.broken:
            raise AudioError("not decodable", "it is broken", where=audio)
        number, word, millis = audio.removeprefix("tones/").split("-")
        rng = np.random.default_rng(int(number))
        time = np.arange(int(millis) * 16) / 16_000
        pitch = 200 + 230 * WORDS.index(word)
        clip = np.sin(2 * np.pi * pitch * time) + 0.5 * np.sin(2 * np.pi * 2 * pitch * time)
        return (0.3 * clip + 0.05 * rng.standard_normal(len(time))).astype(np.float32)


def utterances(count: int, seed: int = 0, source: str = "tones") -> list[Utterance]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        word, millis = WORDS[int(rng.integers(len(WORDS)))], int(rng.integers(300, 1500))
        name = f"tones/{seed * 10_000 + number}-{word}-{millis}"
        found.append(Utterance(name, name, word, millis / 1000, source, "general"))
    return found


MODELS = {
    "toy": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
    "qwen3-asr": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
    "ctc": {"family": "ctc", "base": "tiny"},
    "parakeet": {"family": "ctc", "base": "tiny-parakeet"},
}
"""The model part of a spec, by what the tests call it; the toy's says nothing."""


def spec_of(model: str = "toy", **train_changes: Any) -> RoundSpec:
    train_part: dict[str, Any] = {
        "global_batch": 8,
        "precision": "fp32",
        "phases": [{"name": "full", "epochs": 3, "rates": {"all": 5e-3}}],
        "schedule": {"warmup_steps": 4, "rewarm_steps": 2},
        "evaluate": {"every_steps": 10, "utterances": 20},
        "keep": {"every_steps": 5, "last": 2, "best": 1},
        **train_changes,
    }
    return RoundSpec.model_validate(
        {
            "round": "toy",
            "seed": 7,
            "model": MODELS[model],
            "data": {"sources": [{"name": "tones", "path": "tones"}]},
            "train": train_part,
            "benchmark": {"sets": [{"name": "test", "path": "test"}]},
        }
    )


def work_in(
    folder: Path,
    count: int = 60,
    workers: int = 0,
    cap: float = 6.0,
    cluster: Mapping[str, Any] | None = None,
    family: Family | None = None,
    broken: tuple[str, ...] = (),
    spec: RoundSpec | None = None,
) -> Work:
    family = family or ToyFamily()
    spec = spec or spec_of()
    data = utterances(count)
    return Work(
        spec=spec,
        cluster=ClusterSpec.model_validate({"workers": workers, **(cluster or {})}),
        family=family,
        base=family.prepare(spec.model, WORDS, spec.seed, folder / "base"),
        folder=folder / "train",
        train=data,
        dev=utterances(20, seed=1),
        reader=Tones(broken),
        max_padded_seconds=cap,
        identity="test",
    )


def trained_by(work: Work) -> Trained:
    with processes() as ranks:
        return train(work, ranks)


def main(folder: str, settings: str) -> int:
    """`python training_work.py FOLDER '{"workers": 1, "train": {...}}'`: trains there, exits as caspi does."""
    options = json.loads(settings)
    if options.pop("qwen", False):
        from caspi.families.qwen3_asr import QWEN3_ASR

        options["family"] = QWEN3_ASR
    if "dropout" in options:
        options["family"] = ToyFamily(options.pop("dropout"))
    spec = spec_of(**options.pop("train", {}))
    try:
        trained = trained_by(work_in(Path(folder), spec=spec, **options))
    except CaspiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if os.environ.get("RANK", "0") == "0":
        print(trained.chosen.path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
