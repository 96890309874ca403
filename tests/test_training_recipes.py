"""Recipes: noise, masks, schedules, averaging, warnings, the forecast, the log; tables and their planted faults."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from caspi.errors import Diverged
from caspi.records.results import AverageScore, DevScore
from caspi.spec import ClusterSpec, RoundSpec
from caspi.spec.round import Augment, Noise, Schedule, SpecAugment
from caspi.training.augment import augmented, augmented_rng, mask
from caspi.training.averaging import average, mean_of_files
from caspi.training.checkpoint import Checkpoint, State, publish, read_checkpoint, save_checkpoint
from caspi.training.clock import ROUGH, Clock
from caspi.training.data import Orders, Speech
from caspi.training.distributed import processes
from caspi.training.evaluation import Evaluation
from caspi.training.forecast import MEASURED_STEPS, Pace, forecast, over_budget, seconds_left
from caspi.training.mixing import epochs_by_source
from caspi.training.phases import phase_plans, rate_factor
from caspi.training.training_log import training_log
from caspi.training.watch import FAINT_STEPS, STEEP_STEPS, Watch
from tests.ranks import FORK
from tests.toy_family import ToyFamily, ToyModel, ToyNetwork
from tests.training_work import Tones, spec_of, trained_by, utterances, work_in

CLIP = Tones().read("tones/1-mayim-1000")
LOUD = Augment(noise=Noise(snr=(10.0, 10.0), share=1.0))


# --- noise


def _noisy(
    augment: Augment = LOUD, clip: Any = CLIP, seed: int = 1, epoch: int = 2, key: int = 3, copy: int = 0
) -> Any:
    return augmented(clip, augment, seed, epoch, key, copy, 1.0)


def test_noise_has_the_snr_that_was_drawn() -> None:
    for snr in (-5.0, 10.0, 30.0):
        noise = _noisy(Augment(noise=Noise(snr=(snr, snr), share=1.0))) - CLIP
        found = 10 * math.log10(np.mean(CLIP.astype(float) ** 2) / np.mean(noise.astype(float) ** 2))
        assert found == pytest.approx(snr, abs=0.2)
    levels = [np.std(_noisy(Augment(noise=Noise(snr=(15, 30), share=1.0)), key=key) - CLIP) for key in range(200)]
    in_db = [20 * math.log10(np.std(CLIP) / level) for level in levels]
    assert min(in_db) == pytest.approx(15, abs=0.5) and max(in_db) == pytest.approx(30, abs=0.5)


def test_noise_belongs_to_the_utterance_and_its_epoch() -> None:
    assert np.array_equal(_noisy(), _noisy())
    for other in ({"seed": 2}, {"epoch": 3}, {"key": 4}, {"copy": 1}):
        assert not np.array_equal(_noisy(), _noisy(**other)), other
    share = Augment(noise=Noise(share=0.3))
    assert sum(not np.array_equal(_noisy(share, key=key), CLIP) for key in range(1000)) == pytest.approx(300, abs=45)


def test_without_noise_or_with_silence_the_clip_is_what_it_was() -> None:
    assert _noisy(Augment()) is CLIP
    for clip in (np.zeros(1600, np.float32), np.zeros(0, np.float32)):
        assert np.array_equal(_noisy(clip=clip), clip)
    assert _noisy().dtype == np.float32 and np.isfinite(_noisy()).all()


def test_noise_leaves_the_masks_of_a_round_where_they_were() -> None:
    """Its random numbers are its own: a round that adds noise changes nothing else."""
    masks = {"specaugment": {"freq": [1, 3], "time": [1, 10]}}
    data, model = utterances(6), ToyModel(ToyNetwork(), torch.device("cpu"))
    holes = []
    for noise in ({}, {"noise": {"snr": [80, 80], "share": 1}}):
        spec = spec_of(augment={**masks, **noise})
        speech = Speech(spec, data, Tones(), model)
        batches = [speech[order] for order in Orders(spec, data, 0, 1, 60.0).from_step(0, 1)]
        holes.append([batch.batch.tensors["features"] for batch in batches if batch.batch])
    assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(*holes, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(*holes, strict=True))


def test_dev_is_scored_without_augmentation() -> None:
    model = ToyModel(ToyNetwork(), torch.device("cpu"))
    loud = {"noise": {"snr": [-10, -10], "share": 1}, "specaugment": {"freq": [4, 6], "time": [4, 90]}, "speed": [0.5]}
    with processes() as ranks:
        scores = [
            Evaluation(spec_of(augment=augment), utterances(20), Tones(), ranks, 60.0, 0).score(model, 1, 0.1)
            for augment in ({}, loud)
        ]
    assert scores[0] == scores[1]


def test_stretches_of_a_waveform_are_silenced() -> None:
    """Features of one bin are samples: 80 frames of 10 ms are 12,800 of them, and at most a fifth of a clip."""
    wave = np.ones((1, 48_000), np.float32)
    spec = SpecAugment(freq=(2, 27), time=(2, 40))
    widths = []
    for seed in range(40):
        masked = mask(wave, spec, augmented_rng(seed, 0, 0, 0))
        edges = np.flatnonzero(np.diff(np.concatenate([[0], masked[0] == 0, [0]])))
        widths += [last - first for first, last in zip(edges[::2], edges[1::2], strict=True)]
        assert set(np.unique(masked)) <= {0.0, 1.0}
    assert 5_000 < max(widths) <= 2 * 40 * 160 and len(widths) > 40
    short = mask(np.ones((1, 1000), np.float32), spec, augmented_rng(1, 0, 0, 0))
    assert (short == 0).sum() <= 400


# --- schedules


def test_noam_climbs_to_the_peak_and_falls_as_the_root_of_the_step() -> None:
    train = spec_of(phases=[{"name": n, "epochs": 1, "rates": {"all": 1e-3}} for n in "BA"]).train
    schedule = Schedule(shape="noam", warmup_steps=100, rewarm_steps=10)
    plans = phase_plans(train, 2000)
    factors = [rate_factor(schedule, plans, step) for step in (0, 49, 99, 100, 399, 1999, 2000, 2009, 3999)]
    expected = [0.01, 0.5, 1.0, (100 / 101) ** 0.5, 0.5, (1 / 20) ** 0.5, 0.1 * (100 / 2001) ** 0.5]
    assert factors == pytest.approx([*expected, (100 / 2010) ** 0.5, (1 / 40) ** 0.5])
    assert max(rate_factor(schedule, plans, step) for step in range(4000)) == 1.0
    assert rate_factor(Schedule(shape="noam", warmup_steps=0), plans, 0) == 1.0


@pytest.mark.parametrize(
    ("lr", "warmup", "peak"), [(5.0, 10_000, 2.21e-3), (1.5, 3_000, 1.21e-3), (2.0, 5_000, 1.25e-3)]
)
def test_the_multiplier_of_nemo_as_a_peak(lr: float, warmup: int, peak: float) -> None:
    """NeMo: lr * d^-0.5 * min(step^-0.5, step * warmup^-1.5), here at width 512. The docstring's formula is its top."""
    assert lr * 512**-0.5 * warmup**-0.5 == pytest.approx(peak, rel=0.01)
    plans = phase_plans(spec_of(phases=[{"name": "A", "epochs": 1, "rates": {"all": 1e-3}}]).train, 50_000)
    schedule = Schedule(shape="noam", warmup_steps=warmup)
    for step in (1, warmup // 2, warmup, 4 * warmup):
        nemo = lr * 512**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert rate_factor(schedule, plans, step - 1) * lr * (512 * warmup) ** -0.5 == pytest.approx(nemo)


# --- averaging


def _checkpoint(folder: Path, step: int, wer: float, network: ToyNetwork) -> Checkpoint:
    score = DevScore(step=step, epoch=step / 10, wer=wer, cer=wer, loss=wer)
    state = State("test", step, "A", (score,), 0, 1.0, {})
    return save_checkpoint(folder, state, ToyModel(network, torch.device("cpu")), {})


def _two(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    torch.manual_seed(0)
    return tuple(_checkpoint(folder, step, step / 100, ToyNetwork()) for step in (10, 20))  # type: ignore[return-value]


def _score(folder: Path) -> DevScore:
    assert (folder / "config.json").exists()
    return DevScore(step=20, epoch=2.0, wer=0.05, cer=0.02, loss=0.3)


def test_the_average_is_the_mean_of_the_weights_and_a_whole_checkpoint(tmp_path: Path) -> None:
    best = _two(tmp_path / "checkpoints")
    with processes() as ranks:
        made = average(tmp_path / "checkpoints", best, ranks, _score)
    assert made is not None and made.score == AverageScore(step=20, epoch=2, wer=0.05, cer=0.02, loss=0.3, of=[10, 20])
    assert read_checkpoint(tmp_path / "checkpoints/average-of-2", thorough=True) is not None
    first, second, mean = (load_file(one.path / "model.safetensors") for one in (*best, made.checkpoint))
    for name, tensor in mean.items():
        assert torch.equal(tensor, ((first[name].double() + second[name].double()) / 2).float()), name
    publish(made.checkpoint, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    ToyFamily().load(tmp_path / "model", None, torch.device("cpu"))


def test_integers_are_not_averaged(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file(
            {"seen": torch.tensor([number]), "w": torch.tensor([float(number)])}, tmp_path / f"{number}.safetensors"
        )
    mean_of_files([tmp_path / "1.safetensors", tmp_path / "2.safetensors"], tmp_path / "mean.safetensors")
    assert load_file(tmp_path / "mean.safetensors") == {"seen": torch.tensor([1]), "w": torch.tensor([1.5])}


def test_an_average_is_found_again_and_made_anew_when_a_part_of_it_changed(tmp_path: Path) -> None:
    folder, asked = tmp_path / "checkpoints", list[Path]()

    def score(path: Path) -> DevScore:
        asked.append(path)
        return _score(path)

    best = _two(folder)
    with processes() as ranks:
        once, again = (average(folder, best, ranks, score) for _ in range(2))
        assert once == again and len(asked) == 1
        os.truncate(folder / "average-of-2/model.safetensors", 100)
        assert average(folder, best, ranks, score) is not None and len(asked) == 2
        shutil.rmtree(best[1].path)
        other = _checkpoint(folder, 20, 0.2, ToyNetwork())
        changed = average(folder, (best[0], other), ranks, score)
        assert changed is not None and len(asked) == 3
        assert average(folder, best[:1], ranks, score) is None


def test_killed_while_averaging_leaves_nothing_half(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    best = _two(folder)
    for point in range(1, 60):
        child = FORK.Process(target=_average_and_die, args=(folder, best, point))
        child.start()
        child.join(30)
        found = read_checkpoint(folder / "average-of-2", thorough=True)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        assert found is None or found.state.step == 10
    assert found is not None and point > 8
    assert sorted(path.name for path in folder.iterdir()) == ["average-of-2", "step-000010", "step-000020"]


def _average_and_die(folder: Path, best: Any, point: int) -> None:
    import sys

    left = [point]

    def audit(event: str, _: Any) -> None:
        if event in ("open", "os.rename", "os.mkdir", "shutil.rmtree", "shutil.copytree"):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with processes() as ranks:
        sys.addaudithook(audit)
        average(folder, best, ranks, _score)
    os._exit(0)


RARE = {"every_steps": 1000}
KEEP = {"every_steps": 5, "last": 2, "best": 3}


def test_a_round_averages_scores_and_says_so(tmp_path: Path) -> None:
    work = work_in(tmp_path, spec=spec_of(average=3, keep=KEEP))
    first = trained_by(work)
    assert (
        first.average is not None
        and len(first.average.of) == 3
        and (tmp_path / "train/checkpoints/average-of-3").is_dir()
    )
    with processes() as ranks:
        model = ToyFamily().load(tmp_path / "train/checkpoints/average-of-3", None, ranks.device)
        evaluation = Evaluation(work.spec, work.dev, work.reader, ranks, work.max_padded_seconds, 0)
        again = evaluation.score(model, first.average.step, first.average.epoch)
    assert again == DevScore(**first.average.model_dump(exclude={"of"}))
    assert (first.score is first.average) == (first.chosen.path.name == "average-of-3")
    assert (first.score.wer, first.score.loss) <= min((s.wer, s.loss) for s in (*first.dev, first.average))
    resumed = trained_by(work)
    assert (resumed.average, resumed.chosen.path, resumed.dev) == (first.average, first.chosen.path, first.dev)


def test_the_average_of_opposites_is_not_chosen(tmp_path: Path) -> None:
    """The twin: weights that are each other's negative average to a model that knows nothing."""
    work = work_in(tmp_path, spec=spec_of(average=2, keep=KEEP))
    trained = trained_by(work)
    best = sorted(trained.dev, key=lambda s: (s.wer, s.loss, s.step))[:2]
    paths = [tmp_path / f"train/checkpoints/step-{score.step:06d}" for score in best]
    found = [read_checkpoint(path) for path in paths]
    assert all(found)
    network = ToyNetwork()
    network.load_state_dict({k: -v for k, v in load_file(paths[0] / "model.safetensors").items()})
    shutil.rmtree(paths[1])
    save_checkpoint(paths[1].parent, found[1].state, ToyModel(network, torch.device("cpu")), found[0].optimizer())  # type: ignore[union-attr]
    if paths[1].name == sorted(p.name for p in paths[1].parent.glob("step-*"))[-1]:
        (paths[1].parent.parent / "latest").write_text(paths[1].name + "\n")
    again = trained_by(work)
    assert again.average is not None and again.average.loss > 1.3 * again.score.loss
    assert again.chosen.path == paths[0] and again.score is not again.average


# --- warnings and named stops


def _watch(stop: dict[str, Any] | None = None, family: str = "qwen3-asr", warmup: int = 0) -> Watch:
    train = spec_of(stop=stop or {}, schedule={"warmup_steps": warmup}).train
    return Watch(train, family, steps_per_epoch=50, state={})


def _falling(step: int) -> float:
    return 5.0 * 0.99**step


CURVES: dict[str, tuple[Callable[[int], tuple[float, float]], str | None, int]] = {
    "falls": (lambda step: (_falling(step), 1.0), None, 0),
    "one odd batch": (lambda step: (30.0 if step == 90 else _falling(step), 1.0), None, 0),
    "comes back": (lambda step: (9.0 if 90 <= step < 105 else _falling(step), 1.0), None, 0),
    "jumps": (lambda step: (9.0 if step > 90 else _falling(step), 1.0), "spike", 120),
    "tiny": (lambda step: (0.04 if step > 90 else 0.01 * _falling(step), 1.0), None, 0),
    "hardly moves": (lambda step: (_falling(step), 0.009), "vanishing gradient", FAINT_STEPS),
    "moves at last": (lambda step: (_falling(step), 0.009 if step % 100 else 0.02), None, 0),
    "blows up": (lambda step: (_falling(step), 60.0 if step > 50 else 1.0), "exploding gradient", 50 + STEEP_STEPS),
    "stands still": (lambda step: (max(2.0, _falling(step)), 1.0), "plateau", 400),
}


@pytest.mark.parametrize("curve", CURVES)
def test_what_looks_wrong_is_said_once(curve: str) -> None:
    values, name, about = CURVES[curve]
    watch, found = _watch(), []
    for step in range(1, 500):
        found += watch.after_step(step, *values(step))
    assert [warning.name for warning in found] == ([name] if name else [])
    assert watch.warnings == found
    if name:
        assert found[0].step == pytest.approx(about, abs=15) and len(found[0].message) > 40


def test_a_spike_stops_where_the_round_says_so() -> None:
    watch = _watch({"spike": {"times": 2, "steps": 50}})
    with pytest.raises(
        Diverged, match=r"step 1[45]\d: loss spike: 9.000 \(median of 20 steps\), [\d.]+ times the lowest"
    ):
        for step in range(1, 300):
            watch.after_step(step, *CURVES["jumps"][0](step))
    patient = _watch({"spike": {"times": 10, "steps": 50}})  # the twin: nine is not ten times the lowest
    for step in range(1, 300):
        patient.after_step(step, *CURVES["jumps"][0](step))


@pytest.mark.parametrize("curve", CURVES)
def test_a_watch_goes_on_from_a_checkpoint(curve: str) -> None:
    """At any step: through JSON, as engine/state.json holds it."""
    whole, parts = _watch(), _watch()
    for step in range(1, 300):
        whole.after_step(step, *CURVES[curve][0](step))
        parts.after_step(step, *CURVES[curve][0](step))
        if step % 7 == 0:
            parts = Watch(parts.train, parts.family, 50, json.loads(json.dumps(parts.state(), allow_nan=False)))
    assert parts.state() == whole.state()


@pytest.mark.parametrize(
    ("family", "words"), [("ctc", "vocabulary of the head or its letter case"), ("qwen3-asr", "script")]
)
def test_a_wer_that_stays_at_all_wrong(family: str, words: str) -> None:
    def dev(*wers: float) -> list[DevScore]:
        return [DevScore(step=10 * i, epoch=i, wer=wer, cer=wer, loss=1) for i, wer in enumerate(wers, start=1)]

    watch = _watch(family=family, warmup=10)
    assert not watch.after_score(dev(1.0, 1.0, 1.0))  # the first is of warm-up
    assert not watch.after_score(dev(1.0, 1.0, 0.99, 1.0))
    (warning,) = watch.after_score(dev(1.0, 1.0, 1.2, 0.999))
    assert warning.name == "stuck WER" and words in warning.message
    assert not watch.after_score(dev(1.0, 1.0, 1.2, 0.999, 1.0))


def test_a_round_that_stands_still_says_so_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caspi.training.watch.PATIENCE", 100)
    spec = spec_of(
        phases=[{"name": "full", "epochs": 16, "rates": {"all": 1e-9}}],
        evaluate={"every_steps": 30, "utterances": 20},
        keep=RARE,
    )
    trained = trained_by(work_in(tmp_path, spec=spec))
    assert [warning.name for warning in trained.warnings] == ["stuck WER", "plateau"]
    lines = [json.loads(line) for line in (tmp_path / "train/metrics.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines if line["kind"] == "warning"] == ["stuck WER", "plateau"]
    assert [w.name for w in trained_by(work_in(tmp_path, spec=spec)).warnings] == ["stuck WER", "plateau"]


# --- the forecast


class Ticks:
    """A clock that is told what time it is."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


PHASES = [
    {"name": "B", "epochs": 3, "rates": {"projector": 1e-3}},
    {"name": "A", "epochs": 5, "rates": {"all": 1e-3}},
]


@pytest.mark.parametrize("slow_start", [0.0, 5.0])
@pytest.mark.parametrize(("evaluate", "keep"), [(50, 50), (300, 100), (1000, 500)])
def test_the_forecast_after_100_steps(evaluate: int, keep: int, slow_start: float) -> None:
    """Against a run that is played to its end on the same clock: steps of uneven length, a slow start, two phases."""
    spec = spec_of(
        phases=PHASES,
        evaluate={"every_steps": evaluate, "utterances": 20},
        keep={"every_steps": keep, "last": 1, "best": 1},
    )
    phases, moving = phase_plans(spec.train, 400), [0.1, 1.0]
    now, random = Ticks(), np.random.default_rng(5)
    clock, predicted, step = Clock(now), 0.0, 0
    pace = {"evaluation": 22.0, "checkpoint": 4.0}
    for phase, share in zip(phases, moving, strict=True):
        clock.begin_phase()
        for _ in clock.waiting(range(phase.last_step - phase.first_step)):
            now.time += 0.5 * (2 + share) * random.uniform(0.5, 1.5) + (slow_start if step < ROUGH else 0)
            clock.stepped(8)
            step += 1
            if clock.phase_steps == MEASURED_STEPS and step == MEASURED_STEPS:
                seconds = clock.step_seconds()
                assert seconds is not None
                left = seconds_left(spec.train, phases, moving, step, Pace(seconds, 22.0, 4.0))
                predicted = clock.seconds() + left
            for what, every in (("evaluation", evaluate), ("checkpoint", keep)):
                if step % every == 0 or step == phase.last_step:
                    with clock.aside(what):
                        now.time += pace[what] * random.uniform(0.8, 1.2)
    assert predicted == pytest.approx(clock.seconds(), rel=0.1)
    assert (clock.last("evaluation") or 0) == pytest.approx(22, rel=0.2) and clock.last("nothing") is None
    naive = step * 0.5 * 2.1  # the twin: steps at the pace of the first phase, and nothing else
    assert naive < 0.9 * clock.seconds()


def test_at_the_end_nothing_is_left() -> None:
    train = spec_of(phases=PHASES).train
    phases = phase_plans(train, 400)
    assert seconds_left(train, phases, [0.1, 1.0], 3200, Pace(1, 10, 10), finished=True) == 0
    assert seconds_left(train, phases, [0.1, 1.0], 3200, Pace(1, 10, 10)) == 20


def test_cost_and_a_budget_that_will_not_last() -> None:
    cluster = ClusterSpec.model_validate(
        {"gpus_per_node": 2, "gpu": {"product": "A100", "memory": "40GiB", "price": "1.5 USD/h"}}
    )
    line = forecast(100, 600.0, 6600.0, cluster, 2)
    assert line == {
        "kind": "forecast", "step": 100, "seconds": 600.0, "total_seconds": 7200.0, "cost": 6.0, "currency": "USD"
    }  # fmt: skip
    assert "cost" not in forecast(100, 600.0, 6600.0, ClusterSpec(), 2)
    limits = [spec_of(stop={"cost": cost}).train.stop.cost for cost in ("5.99 USD", "6 USD")]
    problem = over_budget(line, limits[0])
    assert problem and "costs 6.00 USD in all, and train.stop.cost is 5.99 USD" in problem
    assert over_budget(line, limits[1]) is None and over_budget(line, None) is None


def test_a_run_forecasts_itself(tmp_path: Path) -> None:
    spec = spec_of(
        phases=[{"name": "full", "epochs": 20, "rates": {"all": 5e-3}}], evaluate={"every_steps": 120}, keep=RARE
    )
    before = trained_by(work_in(tmp_path / "with", spec=spec))
    lines = [json.loads(line) for line in (tmp_path / "with/train/metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "forecast"]
    assert [line["step"] for line in found] == [100, 120, 160]
    assert found[-1]["total_seconds"] == pytest.approx(before.figures["seconds"], rel=0.2)
    assert not list((tmp_path / "with/train").glob(".speed*"))


def test_what_the_forecast_looks_at_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(
        phases=[{"name": "full", "epochs": 14, "rates": {"all": 5e-3}}], evaluate={"every_steps": 200}, keep=RARE
    )
    trained = [trained_by(work_in(tmp_path / "with", spec=spec))]
    monkeypatch.setattr("caspi.training.engine.MEASURED_STEPS", 10**9)
    trained.append(trained_by(work_in(tmp_path / "without", spec=spec)))
    weights = [load_file(one.chosen.path / "model.safetensors") for one in trained]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# --- the log and the sources


def test_the_log_has_a_row_for_each_score(tmp_path: Path) -> None:
    trained = trained_by(work_in(tmp_path))
    with (tmp_path / "train/training_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["epoch"]), float(row["eval_wer"])) for row in rows] == [
        (score.epoch, pytest.approx(score.wer, abs=1e-4)) for score in trained.dev
    ]
    assert list(rows[0]) == ["epoch", "train_loss", "eval_loss", "eval_wer"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])


def test_train_loss_is_the_mean_since_the_row_before() -> None:
    def lines() -> Iterator[dict[str, Any]]:
        for step, loss in ((1, 3.0), (2, 2.0)):
            yield {"kind": "train", "step": step, "loss": loss}
        yield {"kind": "dev", "step": 2, "epoch": 0.585, "loss": 1.5, "wer": 0.0862}
        yield {"kind": "warning", "step": 2, "name": "plateau", "message": "..."}
        yield {"kind": "dev", "step": 2, "epoch": 0.6, "loss": 1.5, "wer": 0.08}

    expected = "epoch,train_loss,eval_loss,eval_wer\n0.585,2.5000,1.5000,0.0862\n0.6,,1.5000,0.0800\n"
    assert training_log(lines()) == expected


def _mixed(weights: dict[str, float]) -> tuple[RoundSpec, list[Any]]:
    values = spec_of(global_batch=4).model_dump(mode="json", exclude_none=True)
    values["data"]["sources"] = [{"name": name, "path": name, "weight": weight} for name, weight in weights.items()]
    spec = RoundSpec.model_validate(values)
    data = [one for seed, name in enumerate(weights) for one in utterances(30, seed, name)]
    return spec, data


def test_effective_epochs_of_each_source() -> None:
    spec, data = _mixed({"knesset": 0.5, "crowd": 1.0, "recital": 2.0})
    for size in (1, 3):
        orders = Orders(spec, data, 0, size, 60.0)
        seen = epochs_by_source(orders, data, 4 * orders.steps_per_epoch)
        assert {name: (one.utterances, one.epochs) for name, one in seen.items()} == {
            "knesset": (30, 2.0), "crowd": (30, 4.0), "recital": (30, 8.0)
        }  # fmt: skip
    part = epochs_by_source(orders, data, orders.steps_per_epoch // 2)
    assert sum(one.epochs * 30 for one in part.values()) == pytest.approx(105 / 2, abs=4)


def test_effective_epochs_are_what_the_orders_took() -> None:
    """Against the orders of every rank, one by one."""
    spec, data = _mixed({"knesset": 0.3, "crowd": 1.5})
    taken = {"knesset": 0, "crowd": 0}
    for rank in range(2):
        orders = Orders(spec, data, rank, 2, 60.0)
        for order in orders.from_step(0, 25):
            for index in order.utterances:
                taken[data[index].source] += 1
    seen = epochs_by_source(orders, data, 25)
    assert {name: round(one.epochs * 30) for name, one in seen.items()} == taken


def test_results_say_how_often_each_source_was_seen(tmp_path: Path) -> None:
    work = work_in(tmp_path, count=30)
    trained = trained_by(replace(work, train=[replace(one, source="tones") for one in work.train]))
    assert {name: one.model_dump() for name, one in trained.sources.items()} == {
        "tones": {"utterances": 30, "epochs": 3.0}
    }
