"""Intervals: against closed forms, against scipy, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from caspi.scoring.significance import (
    Stratum,
    bootstrap,
    paired,
    resampled_sums,
    share_estimate,
    stratified_share,
)


def corpus(size: int, seed: int, rate: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    lengths = random.integers(3, 20, size)
    return random.binomial(lengths, random.beta(1, 1 / rate - 1, size)), lengths


def test_the_bootstrap_interval_is_the_analytic_one_for_a_large_corpus() -> None:
    errors, lengths = corpus(4000, 0)
    found = bootstrap(errors, lengths, seed=1, resamples=4000)
    rate = errors.sum() / lengths.sum()
    deviation = np.sqrt(np.var(errors - rate * lengths) / len(errors)) / lengths.mean()  # ratio estimator, delta method
    assert found.value == pytest.approx(rate)
    assert (found.high - found.low) / (2 * 1.96 * deviation) == pytest.approx(1, abs=0.05)


def test_the_bootstrap_interval_is_scipys() -> None:
    errors, lengths = corpus(300, 3)
    found = bootstrap(errors, lengths, seed=1, resamples=5000)
    theirs = stats.bootstrap(
        (errors, lengths),
        lambda e, n, axis: e.sum(axis=axis) / n.sum(axis=axis),
        paired=True, method="percentile", n_resamples=5000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert found.low == pytest.approx(theirs.low, abs=0.002)
    assert found.high == pytest.approx(theirs.high, abs=0.002)


def test_the_interval_holds_the_truth_95_times_in_100() -> None:
    held = 0
    for seed in range(300):
        errors, lengths = corpus(200, seed + 10)
        found = bootstrap(errors, lengths, seed=seed, resamples=400)
        held += found.low <= 0.1 <= found.high
    assert 0.91 <= held / 300 <= 0.98


def test_paired_sees_what_two_intervals_cannot() -> None:
    errors, lengths = corpus(800, 5)
    better = np.maximum(0, errors - (np.random.default_rng(1).random(800) < 0.1))
    difference = paired(errors, better, lengths, seed=1)
    assert difference.high < 0
    assert difference.value == pytest.approx((better.sum() - errors.sum()) / lengths.sum())
    one, two = bootstrap(errors, lengths, 1), bootstrap(better, lengths, 1)
    assert two.high > one.low  # apart they overlap


def test_paired_shows_nothing_where_nothing_is() -> None:
    shown = 0
    for seed in range(200):
        errors, lengths = corpus(150, seed)
        noise = np.random.default_rng(1000 + seed).permutation([1, -1] * 75)
        difference = paired(errors + 1, errors + 1 + noise, lengths, seed=seed, resamples=300)
        shown += difference.low > 0 or difference.high < 0
    assert shown / 200 < 0.10
    assert paired(errors, errors, lengths, seed=1).low == 0


def test_resamples_are_of_each_stratum_alone() -> None:
    columns = np.column_stack([np.arange(10.0), np.ones(10)])
    strata = np.array([0] * 4 + [1] * 6)
    sums = resampled_sums(columns, strata, seed=1, resamples=50)
    assert (sums[0][:, 1] == 4).all()
    assert (sums[1][:, 1] == 6).all()
    assert sums[0][:, 0].max() <= 12
    assert sums[1][:, 0].min() >= 24


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (1, 10), (187, 2500), (10, 10), (5, 5), (3, 200)])
def test_the_share_is_scipys_wilson(hits: int, trials: int) -> None:
    found = share_estimate(hits, trials)
    theirs = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    assert found.value == hits / trials
    assert found.low == pytest.approx(theirs.low, abs=1e-12)
    assert found.high == pytest.approx(theirs.high, abs=1e-12)


def test_nothing_tried_is_nothing_known() -> None:
    assert (share_estimate(0, 0).low, share_estimate(0, 0).high) == (0, 1)
    assert (stratified_share([]).low, stratified_share([]).high) == (0, 1)


def test_strata_count_by_their_size_not_by_their_sample() -> None:
    small, large = Stratum(100, 50, 900, 100, 50), Stratum(100, 0, 99_900, 100, 0)
    found = stratified_share([small, large])
    assert found.value == pytest.approx(500 / 101_000)
    assert found.low < found.value < found.high


def test_what_was_looked_at_is_known() -> None:
    found = stratified_share([Stratum(known=200, known_hits=30, unseen=0, trials=200, hits=30)])
    assert (found.low, found.value, found.high) == (0.15, 0.15, 0.15)


def test_a_sample_of_a_huge_population_is_wilsons() -> None:
    found = stratified_share([Stratum(known=0, known_hits=0, unseen=10**9, trials=2500, hits=187)])
    assert found.high == pytest.approx(share_estimate(187, 2500).high, rel=1e-4)


def test_unseen_members_without_a_sample_count_as_hits() -> None:
    assert stratified_share([Stratum(90, 0, 0, 90, 0), Stratum(0, 0, 10, 0, 0)]).low == pytest.approx(0.1)


def test_the_stratified_interval_holds_the_truth() -> None:
    random = np.random.default_rng(7)
    sizes, shares, samples = np.array([4000, 1000, 300]), np.array([0.03, 0.2, 0.5]), np.array([200, 50, 30])
    held = 0
    for _ in range(400):
        hits = random.binomial(sizes, shares)
        drawn = random.hypergeometric(hits, sizes - hits, samples)
        strata = [
            Stratum(int(n), int(k), int(size - n), int(n), int(k))
            for size, n, k in zip(sizes, samples, drawn, strict=True)
        ]
        found = stratified_share(strata)
        held += found.low <= hits.sum() / sizes.sum() <= found.high
    assert held / 400 >= 0.94
