"""Global batches, their split, phases and augmentation: pure functions, checked by properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspi.errors import UserError
from caspi.spec.round import Augment, Schedule, SpecAugment
from caspi.training.augment import augmented_rng, change_speed, mask, speed_factors, utterance_keys
from caspi.training.batches import epoch_batches, epoch_size, padded_seconds, split_batch, steps_per_epoch
from caspi.training.data import Orders
from caspi.training.phases import phase_plans, rate_factor
from tests.training_work import spec_of, utterances

LENGTHS = st.lists(st.floats(0.3, 30), min_size=1, max_size=200)


@given(seconds=LENGTHS, global_batch=st.integers(1, 70), seed=st.integers(0, 99), epoch=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_utterance_once_an_epoch(seconds: list[float], global_batch: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(np.array(seconds), seed, epoch, global_batch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(seconds)))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= global_batch and max(sizes) - min(sizes) <= 1 and len(sizes) <= 2
    assert len(batches) == steps_per_epoch(len(seconds), global_batch)


def test_epochs_differ_and_repeat() -> None:
    seconds = np.random.default_rng(0).uniform(1, 15, 500)
    first, again, second = (epoch_batches(seconds, 3, epoch, 16) for epoch in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("weight", "seen"), [(0.5, 50), (0.25, 25), (1.0, 100), (2.0, 200), (1.5, 150), (0.333, 33)])
def test_weights_are_exact_counts(weight: float, seen: int) -> None:
    seconds = np.random.default_rng(0).uniform(1, 15, 150)
    weights = np.r_[np.ones(50), np.full(100, weight)]
    batches = epoch_batches(seconds, 7, 0, 16, weights)
    counts = np.bincount(np.concatenate(batches), minlength=150)
    assert counts[:50].tolist() == [1] * 50
    assert counts[50:].sum() == seen == epoch_size([(1.0, 50), (weight, 100)]) - 50
    assert counts[50:].max() - counts[50:].min() <= 1 or weight == 1.0


def test_half_weight_sees_everybody_in_two_epochs() -> None:
    seconds, weights = np.random.default_rng(0).uniform(1, 15, 100), np.full(100, 0.5)
    epochs = [set(np.concatenate(epoch_batches(seconds, 7, epoch, 16, weights)).tolist()) for epoch in (0, 1)]
    assert len(epochs[0]) == len(epochs[1]) == 50
    assert epochs[0] | epochs[1] == set(range(100))


@given(seconds=st.lists(st.floats(0.3, 30), min_size=1, max_size=80), ranks=st.integers(1, 9), cap=st.floats(30, 200))
@settings(max_examples=150, deadline=None)
def test_a_split_loses_nothing_and_keeps_the_cap(seconds: list[float], ranks: int, cap: float) -> None:
    lengths = np.array(seconds)
    split = split_batch(lengths, ranks, cap)
    assert len(split) == ranks and len({len(own) for own in split}) == 1
    assert sorted(np.concatenate([micro for own in split for micro in own]).tolist()) == list(range(len(seconds)))
    assert all(padded_seconds(lengths, micro) <= cap * (1 + 1e-9) for own in split for micro in own)


def test_the_cap_is_what_keeps_micro_batches_small() -> None:
    """The twin of the property: a split that only counts utterances goes over."""
    lengths = np.array([29.0, 2, 2, 2, 2, 2, 2, 2])
    by_count = [np.arange(0, 4), np.arange(4, 8)]
    assert max(padded_seconds(lengths, micro) for micro in by_count) > 60
    assert max(padded_seconds(lengths, micro) for micro in split_batch(lengths, 1, 60)[0]) <= 60


def test_ranks_get_about_the_same_work() -> None:
    lengths = np.random.default_rng(1).uniform(1, 15, 64)
    loads = [sum(padded_seconds(lengths, micro) for micro in own) for own in split_batch(lengths, 4, 60)]
    assert max(loads) / np.mean(loads) < 1.15


def test_too_long_for_the_cap_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"data.keep.seconds: an utterance of 31.0 s does not fit"):
        split_batch(np.array([31.0, 2.0]), 2, 30)


@pytest.mark.parametrize("change", [None, (23, 1, 3), (23, 3, 2), (31, 2, 1)])
def test_any_world_size_sees_the_same_batches(change: tuple[int, int, int] | None) -> None:
    """Also when the number of processes changes in the middle of an epoch: none lost, none twice."""
    spec, data = spec_of(augment={"speed": [0.9, 1.0, 1.1]}), utterances(93)
    steps = Orders(spec, data, 0, 1, 6.0).steps_per_epoch * 3

    def seen(first: int, last: int, world_size: int) -> list[set[tuple[int, float]]]:
        found: list[set[tuple[int, float]]] = [set() for _ in range(last - first)]
        for rank in range(world_size):
            for order in Orders(spec, data, rank, world_size, 6.0).from_step(first, last):
                own = set(zip(order.utterances, order.speeds, strict=True))
                assert not own & found[order.step - first]
                found[order.step - first] |= own
        return found

    alone = seen(0, steps, 1)
    at, before, after = change or (0, 1, 2)
    assert seen(0, at, before) + seen(at, steps, after) == alone
    epoch = len(alone) // 3
    assert sorted(index for step in alone[:epoch] for index, _ in step) == list(range(93))


def test_repeats_within_an_epoch_are_told_apart() -> None:
    spec = spec_of().model_copy(deep=True)
    source = spec.data.sources[0].model_copy(update={"weight": 3.0})
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"sources": [source]})})
    orders = Orders(spec, utterances(20), 0, 1, 6.0)
    taken = [
        pair for o in orders.from_step(0, orders.steps_per_epoch) for pair in zip(o.utterances, o.copies, strict=True)
    ]
    assert sorted(taken) == [(index, copy) for index in range(20) for copy in range(3)]


def test_phases_follow_one_another() -> None:
    """The seed's round 2: strategy A begins at step 5,838, not 3,600 or 8,757 (both stood in it)."""
    train = spec_of(
        phases=[
            {"name": "B", "epochs": 2, "rates": {"projector": 2e-4}},
            {"name": "A", "epochs": 3, "rates": {"all": 1e-4}},
        ]
    ).train
    plans = phase_plans(train, steps_per_epoch(186_812, 64))
    assert [(p.first_epoch, p.first_step, p.last_step) for p in plans] == [(0, 0, 5838), (2, 5838, 14595)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("cosine", [0.25, 1.0, 1.0, 0.5, 0.0]), ("linear", [0.25, 1.0, 1.0, 0.5, 0.01]), ("constant", [0.25, 1, 1, 1, 1])],
)
def test_rates_over_a_round(shape: str, expected: list[float]) -> None:
    train = spec_of(phases=[{"name": "A", "epochs": 1, "rates": {"all": 1e-4}}]).train
    schedule = Schedule.model_validate({"shape": shape, "warmup_steps": 4, "rewarm_steps": 0})
    plans = phase_plans(train, 104)
    assert [rate_factor(schedule, plans, step) for step in (0, 3, 4, 54, 103)] == pytest.approx(expected, abs=1e-3)


def test_a_later_phase_warms_up_again() -> None:
    train = spec_of(phases=[{"name": n, "epochs": 1, "rates": {"all": 1e-4}} for n in "BA"]).train
    schedule = Schedule(shape="constant", warmup_steps=10, rewarm_steps=5)
    plans = phase_plans(train, 50)
    assert [rate_factor(schedule, plans, step) for step in (49, 50, 52, 54, 55)] == pytest.approx([1, 0.2, 0.6, 1, 1])


def test_augmentation_belongs_to_the_utterance() -> None:
    """Not to its place in the manifest: reordering changes nothing, another epoch or seed does."""
    augment = Augment(speed=[0.9, 1.0, 1.1])
    ids = [f"crowd/{number}" for number in range(3000)]
    drawn = dict(zip(ids, speed_factors(augment, utterance_keys(ids), 1, 0), strict=True))
    turned = dict(zip(ids[::-1], speed_factors(augment, utterance_keys(ids[::-1]), 1, 0), strict=True))
    assert drawn == turned
    for other in ((1, 1), (2, 0)):
        assert (
            0.5 < np.mean(np.array(list(drawn.values())) != speed_factors(augment, utterance_keys(ids), *other)) < 0.8
        )
    assert all(900 < list(drawn.values()).count(factor) < 1100 for factor in augment.speed)


def test_speed_changes_length_and_pitch() -> None:
    time = np.arange(16_000) / 16_000
    clip = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    faster = change_speed(clip, 1.1)
    assert len(faster) == pytest.approx(16_000 / 1.1, abs=2)
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster))))
    assert np.argmax(spectrum) * 16_000 / len(faster) == pytest.approx(484, abs=2)
    assert change_speed(clip, 1.0) is clip


def test_masks_are_seeded_and_bounded() -> None:
    features = np.random.default_rng(0).standard_normal((80, 200)).astype(np.float32)
    spec = SpecAugment(freq=(2, 27), time=(2, 80))
    once, again = (mask(features, spec, augmented_rng(1, 2, 3, 0)) for _ in range(2))
    assert np.array_equal(once, again) and not np.array_equal(once, features)
    assert not np.array_equal(once, mask(features, spec, augmented_rng(1, 2, 3, 1)))
    for seed in range(50):
        changed = mask(features, spec, augmented_rng(seed, 0, 0, 0)) != features
        assert changed.all(axis=1).sum() <= 54 and changed.all(axis=0).sum() <= 2 * 40
    assert mask(features[:, :2], spec, augmented_rng(1, 2, 3, 0)).shape == (80, 2)
