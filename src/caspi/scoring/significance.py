"""How sure a figure is: intervals of 95% for error rates, differences and shares. Seeded: the same every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from caspi.records.results import Estimate

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
Z95 = 1.959963984540054
"""The 97.5% point of the normal distribution."""


def bootstrap(errors: npt.ArrayLike, lengths: npt.ArrayLike, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """A corpus error rate, sum(errors) / sum(lengths), with its percentile-bootstrap interval over utterances.

    `errors` and `lengths` have shape [utterances]. (Bisani and Ney, ICASSP 2004.)
    """
    columns = np.column_stack([errors, lengths]).astype(np.float64)
    sums = resampled_sums(columns, np.zeros(len(columns), np.int64), seed, resamples)[0]
    return interval(rate(*columns.sum(axis=0)), rates(sums[:, 0], sums[:, 1]))


def paired(
    baseline: npt.ArrayLike, candidate: npt.ArrayLike, lengths: npt.ArrayLike, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Candidate minus baseline of two corpus error rates on the SAME utterances, resampled together.

    What makes an utterance hard for both cancels out, so it sees smaller differences than two single intervals.
    """
    columns = np.column_stack([baseline, candidate, lengths]).astype(np.float64)
    sums = resampled_sums(columns, np.zeros(len(columns), np.int64), seed, resamples)[0]
    before, after, length = columns.sum(axis=0)
    difference = rates(sums[:, 1], sums[:, 2]) - rates(sums[:, 0], sums[:, 2])
    return interval(rate(after, length) - rate(before, length), difference)


def resampled_sums(
    columns: Floats, strata: npt.NDArray[np.int64], seed: int, resamples: int = RESAMPLES
) -> dict[int, Floats]:
    """Sums of each column, [resamples, columns], over utterances drawn with replacement within each stratum.

    `columns` is [utterances, columns] of whole numbers, `strata` [utterances]. All columns see the same draws, so
    differences between them are paired, and sums of strata are stratified estimates. Whole numbers add exactly in
    float64, so the result is the same on every machine.
    """
    result = {}
    for stratum in np.unique(strata):
        rows = columns[strata == stratum]
        random = np.random.default_rng([seed, int(stratum)])
        sums = np.empty((resamples, columns.shape[1]))
        chunk = max(1, CHUNK // rows.size)
        for start in range(0, resamples, chunk):
            count = min(chunk, resamples - start)
            drawn = random.integers(0, len(rows), (count, len(rows)), dtype=np.int32)
            drawn += np.arange(count, dtype=np.int32)[:, None] * np.int32(len(rows))
            weights = np.bincount(drawn.ravel(), minlength=count * len(rows)).reshape(count, len(rows))
            sums[start : start + count] = weights.astype(np.float64) @ rows
        result[int(stratum)] = sums
    return result


CHUNK = 1 << 18
"""Multiplications at once: little memory, and below what makes a BLAS start threads that wait for each other."""


def rate(errors: float, length: float) -> float:
    """errors / length. Without any reference each error counts as 1.0, as in jiwer."""
    return float(errors) / max(1.0, float(length))


def rates(errors: Floats, lengths: Floats) -> Floats:
    return errors / np.maximum(1.0, lengths)


def interval(value: float, samples: Floats) -> Estimate:
    """The value with the middle 95% of its resamples."""
    low, high = np.quantile(samples, [0.025, 0.975])
    return Estimate(value=float(value), low=float(low), high=float(high))


def share_estimate(hits: float, trials: float) -> Estimate:
    """A share hits / trials with its Wilson interval: sensible for small numbers, and at 0% and 100%.

    (Wilson, JASA 1927.) Nothing tried, nothing known: the interval is 0 to 1.
    """
    if trials <= 0:
        return Estimate(value=0.0, low=0.0, high=1.0)
    share, square = hits / trials, Z95 * Z95
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    half = Z95 / (1 + square / trials) * sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return Estimate(value=share, low=min(share, max(0.0, centre - half)), high=max(share, min(1.0, centre + half)))


@dataclass(frozen=True, slots=True)
class Stratum:
    """Part of a population: some members were looked at, the rest is estimated from a sample of its likes."""

    known: int
    """Members looked at that belong to the population."""
    known_hits: int
    unseen: int
    """Members that nobody looked at."""
    trials: int
    """The sample that speaks for the unseen ones."""
    hits: int


def stratified_share(strata: Sequence[Stratum] | Mapping[object, Stratum]) -> Estimate:
    """The share of hits in a whole population of strata, each weighted by its size and not by its sample.

    What was looked at is known, so the interval covers the unseen part alone, and vanishes when everything was
    looked at. The unseen part is a Wilson interval at the sample size that a plain sample of the same variance
    would have (Kish's effective size, with the spread of the unseen members themselves). A stratum with unseen
    members and no sample counts as all hits: what nobody knows is not good.
    """
    members = [*strata.values()] if isinstance(strata, Mapping) else [*strata]
    population = sum(s.known + s.unseen for s in members)
    if not population:
        return share_estimate(0, 0)
    known_hits = sum(s.known_hits for s in members)
    blind = sum(s.unseen for s in members if not s.trials)
    sampled = [s for s in members if s.trials and s.unseen]
    unseen = sum(s.unseen for s in sampled)
    if not unseen:
        share = (known_hits + blind) / population
        return Estimate(value=share, low=share, high=share)
    expected = sum(s.unseen * s.hits / s.trials for s in sampled) / unseen
    size = unseen**2 / sum(s.unseen**2 / s.trials + s.unseen for s in sampled)
    part = share_estimate(expected * size, size)
    value, low, high = ((known_hits + blind + unseen * x) / population for x in (part.value, part.low, part.high))
    return Estimate(value=value, low=low, high=high)
