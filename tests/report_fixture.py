"""Two rounds on disk as their stages would leave them: real types, real files, made-up numbers that fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from caspi.files import atomic, digest, file_digest, json_line, read_json_lines, write_json
from caspi.records.record import Circumstances, Record, StageName, Stored, write_record
from caspi.records.results import (
    AuditResults,
    BenchmarkResults,
    CompareResults,
    DevScore,
    DomainAudit,
    ExportResults,
    Finding,
    PhaseResults,
    SourceLedger,
    TrainResults,
)
from caspi.records.round_dir import RoundDir, create
from caspi.scoring.scores import score_predictions
from caspi.scoring.significance import share_estimate
from caspi.spec import ClusterSpec, RoundSpec, parse
from caspi.stages.compare import compare, sentence, verdict

HEBREW = """
שלום תודה בוקר טוב לילה מים לחם בית ספר ילד ילדה אדום כחול ירוק שמש ירח עץ פרח דרך עיר ים הר רוח אש
היום מחר אתמול אני אתה הולך בא רואה שומע אוהב גדול קטן חדש ישן
"""
WORDS = HEBREW.split()
MIXED = ("WhatsApp", "2026", "GPU", "15", "צה״ל", "100%")
STEPS = 600
BOUNDARY = 240
STARTED = {
    "export": "07:01:10",
    "audit": "07:01:24",
    "train": "07:01:31",
    "benchmark": "07:04:42",
    "compare": "07:05:20",
}
SECONDS = {"export": 12.4, "audit": 6.81, "train": 188.5, "benchmark": 37.2, "compare": 0.41}


@dataclass(frozen=True)
class Rounds:
    """The two rounds, and where they lie."""

    first: RoundDir
    second: RoundDir


def make_rounds(folder: Path) -> Rounds:
    """demo-r1 and demo-r2, finished, under `folder`/runs; their audio under `folder`/demo."""
    _clips(folder / "demo")
    first = _round(folder, "demo-r1", None, quality=0.74)
    second = _round(folder, "demo-r2", first, quality=0.87)
    return Rounds(first, second)


def make_record(
    round_dir: RoundDir,
    stage: StageName,
    results: Stored | None,
    *,
    outputs: tuple[str, ...] = (),
    inputs: Mapping[str, str] | None = None,
    error: str | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Record:
    """Write the record of a stage; without results it failed with `error`."""
    folder = round_dir.folder(stage)
    record = Record(
        stage=stage,
        status="succeeded" if results is not None else "failed",
        round=round_dir.spec.round,
        spec=round_dir.spec.digest,
        seed=round_dir.spec.seed,
        inputs=dict(inputs or {}),
        outputs={name: file_digest(folder / name) for name in outputs},
        results=results.model_dump(mode="json") if results is not None else {},
        error=error,
        circumstances=Circumstances(
            started=f"2026-11-21T{STARTED[stage]}+00:00",
            seconds=SECONDS[stage],
            host="asr-build-01",
            git="3f9c2d1e8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c3d",
            versions={"python": "3.11.2", "caspi": "0.1.0", "numpy": "2.4.6", "torch": "2.13.0", "qwen-asr": "0.0.6"},
            figures=dict(figures or {}),
        ),
    )
    write_record(folder / "record.json", record)
    return record


def make_spec(name: str, parent: str | None) -> RoundSpec:
    phases = [
        {"name": "B", "epochs": 4, "rates": {"projector": 2e-3, "llm_top:2": 5e-4, "lm_head": 1e-3}},
        {
            "name": "A",
            "epochs": 6,
            "rates": {"projector": 1e-3, "audio_top:2": 3e-4, "llm_top:2": 3e-4, "lm_head": 1e-3},
        },
    ]
    values: dict[str, Any] = {
        "round": name,
        "parent": parent,
        "model": {"family": "qwen3-asr", "base": "tiny", "language": "Hebrew"},
        "data": {
            "sources": [
                {"name": "crowd", "path": "demo/crowd", "domain": "phone"},
                {"name": "recital", "path": "demo/recital", "domain": "read"},
            ],
            "text": "hebrew-2",
        },
        "train": {"global_batch": 16, "precision": "fp32", "phases": phases if parent else [phases[0]]},
        "benchmark": {
            "sets": [
                {"name": "unseen-voices", "path": "demo/test/clean", "domain": "studio"},
                {"name": "unseen-phone", "path": "demo/test/phone", "domain": "phone"},
            ],
            "profiles": ["hebrew-fair", "ivrit-leaderboard"],
            "target": {"at_most": 20, "goal": 15, "stretch": 10},
        },
    }
    return parse(values, RoundSpec, "fixture")


def some_words(random: np.random.Generator) -> str:
    words = [str(random.choice(WORDS)) for _ in range(int(random.integers(3, 9)))]
    if random.random() < 0.2:
        words.insert(int(random.integers(0, len(words))), str(random.choice(MIXED)))
    return " ".join(words)


def heard(text: str, quality: float, random: np.random.Generator) -> str:
    """The text with some words wrong, missing or repeated."""
    found: list[str] = []
    for word in text.split():
        luck = random.random()
        if luck < quality:
            found.append(word)
        elif luck < quality + (1 - quality) * 0.6:
            found.append(str(random.choice(WORDS)))
        elif luck < quality + (1 - quality) * 0.75:
            found += [word, word]
    return " ".join(found)


def metrics(phases: list[PhaseResults], quality: float, seed: int) -> list[dict[str, Any]]:
    """600 steps as the engine logs them."""
    random = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = []
    for step in range(STEPS):
        phase = next(p for p in phases if p.first_step <= step < p.last_step)
        done = step / STEPS
        factor = min(1.0, (step - phase.first_step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * done))
        lines.append(
            {
                "kind": "train",
                "step": step + 1,
                "epoch": round(step / 60, 3),
                "phase": phase.name,
                "loss": float(0.35 + 4.4 * math.exp(-done * 6) + random.normal(0, 0.12) * (1.1 - done)),
                "grad_norm": float(random.uniform(0.4, 1.4)),
                "rates": {group: peak * factor for group, peak in phase.rates.items()},
                "tokens": int(random.integers(90, 140)),
                "utterances_per_second": float(54 + random.normal(0, 2.5) - (9 if phase.name == "A" else 0)),
                "padding": float(random.uniform(0.01, 0.05)),
                "seconds": 0.31,
            }
        )
        if (step + 1) % 60 == 0:
            wer = (1 - quality) + 0.75 * math.exp(-done * 5)
            lines.append(
                {"kind": "dev", "step": step + 1, "epoch": (step + 1) / 60, "phase": phase.name, "wer": wer}
                | {"cer": wer * 0.42, "loss": 0.4 + 3.9 * math.exp(-done * 5)}
            )
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    with atomic(path) as file:
        file.writelines(json_line(line) for line in lines)


def _clips(demo: Path) -> None:
    """Sung vowels: a second of harmonics each, as 16 kHz WAV."""
    random = np.random.default_rng(7)
    for folder, count in (("crowd", 12), ("recital", 6), ("test/clean", 24), ("test/phone", 24)):
        (demo / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            time = np.arange(int(16_000 * random.uniform(0.7, 1.3))) / 16_000
            pitch = random.uniform(90, 220)
            wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 8)) * np.hanning(len(time)) * 0.2
            soundfile.write(demo / folder / f"{index:04d}.wav", wave.astype(np.float32), 16_000, subtype="PCM_16")


def _round(folder: Path, name: str, parent: RoundDir | None, quality: float) -> RoundDir:
    spec = make_spec(name, parent.spec.round if parent else None)
    round_dir = create(folder / "runs", spec, ClusterSpec(), folder)
    export = _export(round_dir)
    audit = _audit(round_dir, export)
    train = _train(round_dir, audit, quality)
    benchmark = _benchmark(round_dir, train, quality)
    if parent:
        _compare(round_dir, parent, benchmark)
    return round_dir


def _export(round_dir: RoundDir) -> Record:
    folder = round_dir.folder("export")
    crowd = SourceLedger(
        name="crowd",
        read=1000,
        kept=941,
        dropped={"too short": 31, "too few characters a second": 19, "not decodable": 6, "empty": 3},
        train=860,
        eval=81,
        hours=1.12,
    )
    recital = SourceLedger(name="recital", read=420, kept=412, dropped={"too long": 8}, train=391, eval=21, hours=0.61)
    sets = [
        SourceLedger(name="unseen-voices", read=120, kept=120, dropped={}, train=0, eval=0, hours=0.11),
        SourceLedger(name="unseen-phone", read=80, kept=79, dropped={"not decodable": 1}, train=0, eval=0, hours=0.07),
    ]
    write_json(folder / "ledger.json", [crowd.model_dump(), recital.model_dump()])
    results = ExportResults(
        sources=[crowd, recital],
        sets=sets,
        train=1251,
        eval=102,
        train_hours=1.6,
        eval_hours=0.13,
        text="hebrew-2",
    )
    inputs = {"spec": round_dir.spec.digest, "source crowd": digest("crowd"), "source recital": digest("recital")}
    return make_record(round_dir, "export", results, outputs=("ledger.json",), inputs=inputs)


def _audit(round_dir: RoundDir, export: Record) -> Record:
    random = np.random.default_rng(3)
    details = {
        "silent": "peak −62 dBFS",
        "clipped": "3.1% of the samples at full scale",
        "text_rate": "31.0 characters/s, usual is 11.2",
        "leaked": "same text and speaker as unseen-phone/0007",
    }
    numbers = {"silent": 4, "clipped": 2, "text_rate": 17, "leaked": 9}
    findings = [
        Finding(
            utterance=f"crowd/{index:04d}",
            check=check,
            detail=details[check],
            domain="phone" if index % 3 else "read",
            source="crowd",
            text=some_words(random),
            audio=f"crowd/{index % 12:04d}.wav",
        )
        for check, number in numbers.items()
        for index in range(number)
    ]
    write_lines(round_dir.folder("audit") / "findings.jsonl", [finding.model_dump() for finding in findings])
    results = AuditResults(
        decision="PROCEED",
        reasons=[
            "low quality 2.2% (95%: 1.5–3.1%), at most 10.0%",
            "worst domain phone 2.9% (95%: 1.9–4.2%), at most 15.0%",
        ],
        sampled=1251,
        utterances=1251,
        low_quality=share_estimate(27, 1251),
        domains=[
            DomainAudit(
                domain="phone",
                utterances=860,
                sampled=860,
                low_quality=share_estimate(25, 860),
                median_seconds=3.4,
                median_characters_per_second=11.2,
            ),
            DomainAudit(
                domain="read",
                utterances=391,
                sampled=391,
                low_quality=share_estimate(2, 391),
                median_seconds=5.1,
                median_characters_per_second=9.8,
            ),
        ],
        findings=numbers,
        left_out=9,
        fingerprinted=1552,
        shared_texts=3,
    )
    inputs = {"export": export.digest}
    return make_record(round_dir, "audit", results, outputs=("findings.jsonl",), inputs=inputs)


def _train(round_dir: RoundDir, audit: Record, quality: float) -> Record:
    spec = round_dir.spec
    boundaries = [0, BOUNDARY, STEPS] if spec.parent else [0, STEPS]
    phases = [
        PhaseResults(
            name=phase.name,
            first_step=boundaries[index],
            last_step=boundaries[index + 1],
            trainable=(918_347, 1_019_117)[index],
            parameters=2_038_052,
            rates=phase.rates,
        )
        for index, phase in enumerate(spec.train.phases)
    ]
    lines = metrics(phases, quality, seed=11 if spec.parent else 5)
    write_lines(round_dir.folder("train") / "metrics.jsonl", lines)
    dev = [DevScore.model_validate(line) for line in lines if line["kind"] == "dev"]
    best = min(dev, key=lambda score: score.wer)
    results = TrainResults(
        base=spec.parent or "tiny",
        steps=STEPS,
        utterances=1242,
        phases=phases,
        dev=dev,
        chosen_step=best.step,
        chosen_wer=best.wer,
        tied=["lm_head is embed_tokens: both move"],
    )
    inputs = {"export": audit.inputs["export"], "audit": audit.digest}
    figures = {
        "seconds": 188.2,
        "utterances_per_second": 50.4,
        "waited_for_data": 0.012,
        "world_size": 1,
        "device": "cpu",
        "gpu_hours": 0.0,
        "cost": None,
        "peak_memory": 812_000_000,
        "skipped": 0,
    }
    return make_record(round_dir, "train", results, inputs=inputs, figures=figures)


def predictions(quality: float) -> list[dict[str, Any]]:
    """Of both test sets; the references are the same for every quality."""
    texts, ears = np.random.default_rng(21), np.random.default_rng(int(quality * 1000))
    lines: list[dict[str, Any]] = []
    for name, domain, count, harder in (("unseen-phone", "phone", 79, 0.06), ("unseen-voices", "studio", 120, 0.0)):
        for index in range(count):
            reference = some_words(texts)
            hypothesis = heard(reference, quality - harder, ears)
            lines.append(
                {
                    "id": f"{name}/{index:04d}",
                    "set": name,
                    "domain": domain,
                    "reference": reference,
                    "hypothesis": hypothesis,
                    "raw": f"language Hebrew<asr_text>{hypothesis}",
                    "seconds": round(1.1 + 0.4 * len(reference.split()), 2),
                    "audio": f"{name}/{index % 24:04d}.wav",
                }
            )
    return lines


def _benchmark(round_dir: RoundDir, train: Record, quality: float) -> Record:
    lines = predictions(quality)
    write_lines(round_dir.folder("benchmark") / "predictions.jsonl", lines)
    results = BenchmarkResults(
        model=digest(round_dir.spec.round),
        scores=score_predictions(lines, round_dir.spec.benchmark.profiles, 42),
        loops=1,
        empty=sum(not line["hypothesis"] for line in lines),
        target_met=quality > 0.8,
    )
    return make_record(
        round_dir,
        "benchmark",
        results,
        outputs=("predictions.jsonl",),
        inputs={"train": train.digest, "model": results.model},
        figures={"rtfx": 31.4, "latency": {"p50": 0.2104, "p90": 0.4533, "p99": 0.6001}, "concurrency": 16},
    )


def _compare(round_dir: RoundDir, parent: RoundDir, benchmark: Record) -> Record:
    before, after = (
        list(read_json_lines(one.folder("benchmark") / "predictions.jsonl")) for one in (parent, round_dir)
    )
    deltas = compare(before, after, round_dir.spec.benchmark.profiles, round_dir.spec.seed)
    decisive = next(delta for delta in deltas if delta.group == "average")
    names = (parent.spec.round, round_dir.spec.round)
    results = CompareResults(
        baseline=names[0],
        candidate=names[1],
        deltas=deltas,
        verdict=verdict(decisive.difference),
        sentence=sentence(decisive, *names, sets=["unseen-phone", "unseen-voices"], alone={}),
    )
    inputs = {"benchmark": benchmark.digest, "parent benchmark": parent.succeeded("benchmark").digest}
    return make_record(round_dir, "compare", results, inputs=inputs)
