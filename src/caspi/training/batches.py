"""Which utterances make a step, and how a step is split over processes. Pure functions of numbers: no torch, no audio.

The global batches are a function of (seed, epoch) alone, so any number of processes follows the same curve. How
one global batch is split depends on the cluster, and changes nothing about its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from caspi.errors import UserError

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

JITTER = 0.05  # neighbours in length change from epoch to epoch by this much; more costs padding


def epoch_batches(
    seconds: Floats, seed: int, epoch: int, global_batch: int, weights: Floats | None = None
) -> list[Indices]:
    """The global batches of one epoch (counted from 0), as indices into `seconds`.

    Utterances of like length go together (a sort by length, each length jittered by 5%), and the batches come in
    random order. Nothing is dropped: all batches of an epoch have the same size to within one utterance, at most
    `global_batch`. With `weights`, a fraction w < 1 takes exactly round(w * n) of the n utterances of that weight,
    others each epoch until all were seen; w = 2 takes each of them twice.
    """
    rng = np.random.default_rng([seed, epoch, 0])
    chosen = _chosen(len(seconds), seed, epoch, weights)
    jittered = seconds[chosen] * rng.uniform(1 - JITTER, 1 + JITTER, len(chosen))
    ordered = chosen[np.argsort(jittered, kind="stable")]
    batches = np.array_split(ordered, steps_per_epoch(len(chosen), global_batch))
    return [batches[index] for index in rng.permutation(len(batches))]


def steps_per_epoch(utterances: int, global_batch: int) -> int:
    """Optimizer steps of an epoch that sees so many utterances (epoch_size, where there are weights)."""
    return math.ceil(utterances / global_batch)


def epoch_size(counts: Sequence[tuple[float, int]]) -> int:
    """Utterances seen an epoch, from (weight, how many) of each source."""
    by_weight: dict[float, int] = {}
    for weight, count in counts:
        by_weight[weight] = by_weight.get(weight, 0) + count
    return sum(int(weight) * count + _drawn(weight, count) for weight, count in by_weight.items())


def split_batch(seconds: Floats, world_size: int, max_padded_seconds: float) -> list[list[Indices]]:
    """Split one global batch into micro-batches: for each rank, a list of indices into `seconds`.

    No micro-batch exceeds `max_padded_seconds` (its longest utterance times its count). Every rank gets the same
    number of micro-batches, as few as the cap allows, and about the same work; where utterances are too few some
    micro-batches are empty. Longest first, so that what needs most memory runs first.
    """
    check_fits(seconds, max_padded_seconds)
    order = np.argsort(-seconds, kind="stable")
    lengths: list[float] = seconds[order].tolist()
    for rounds in range(1, len(lengths) + 1):
        cuts = _cuts(lengths, world_size * rounds, max_padded_seconds)
        if cuts is not None:
            break
    else:
        raise AssertionError("one utterance a micro-batch always fits: check_fits saw to that")
    pieces = [order[first:last] for first, last in cuts]
    work = [lengths[first] * (last - first) for first, last in cuts]
    return _dealt(pieces, work, world_size, rounds)


def check_fits(seconds: Floats, max_padded_seconds: float) -> None:
    """UserError when one utterance alone is over the cap."""
    longest = float(np.max(seconds, initial=0.0))
    if longest > max_padded_seconds:
        raise UserError(
            f"data.keep.seconds: an utterance of {longest:.1f} s does not fit, a micro-batch holds at most "
            f"{max_padded_seconds:.1f} padded seconds on this cluster; keep shorter ones, or use more memory"
        )


def padded_seconds(seconds: Floats, micro_batch: Indices) -> float:
    """What a micro-batch costs: its longest utterance times its count."""
    return float(seconds[micro_batch].max(initial=0.0)) * len(micro_batch)


def _chosen(count: int, seed: int, epoch: int, weights: Floats | None) -> Indices:
    if weights is None:
        return np.arange(count)
    chosen = []
    for weight in np.unique(weights):
        members = np.flatnonzero(weights == weight)
        chosen += [members] * int(weight)
        if drawn := _drawn(float(weight), len(members)):
            # A window that slides over one fixed shuffle: n / drawn epochs see everybody once.
            shuffled = np.random.default_rng([seed, 1]).permutation(members)
            chosen.append(shuffled[(epoch * drawn + np.arange(drawn)) % len(members)])
    return np.sort(np.concatenate(chosen)) if chosen else np.arange(0)


def _drawn(weight: float, count: int) -> int:
    """How many of `count` utterances the fraction of a weight stands for, beyond its whole copies."""
    return math.floor((weight - int(weight)) * count + 0.5)


def _cuts(lengths: list[float], pieces: int, cap: float) -> list[tuple[int, int]] | None:
    """Cut the descending lengths into at most `pieces` runs, the costliest as cheap as can be; None over the cap."""
    best = _runs(lengths, pieces, cap)
    if best is None:
        return None
    low, high = max(lengths[0], sum(lengths) / pieces), cap
    while high - low > 0.005 * low:  # half a percent from the optimum
        middle = (low + high) / 2
        runs = _runs(lengths, pieces, middle)
        if runs is None:
            low = middle
        else:
            best, high = runs, middle
    return best


def _runs(lengths: list[float], pieces: int, cap: float) -> list[tuple[int, int]] | None:
    """Fill runs up to `cap`, one after another; None when `pieces` of them do not hold everything."""
    runs: list[tuple[int, int]] = []
    first, count = 0, len(lengths)
    while first < count:
        if len(runs) == pieces:
            return None
        last = min(count, first + int(cap / lengths[first]))
        if last == first:
            return None
        runs.append((first, last))
        first = last
    return runs


def _dealt(pieces: list[Indices], work: list[float], world_size: int, rounds: int) -> list[list[Indices]]:
    """Deal the pieces to ranks: the costliest first, each to the rank with the least work that has room."""
    ranks: list[list[Indices]] = [[] for _ in range(world_size)]
    load = [0.0] * world_size
    for index in sorted(range(len(pieces)), key=lambda index: -work[index]):
        rank = min((r for r in range(world_size) if len(ranks[r]) < rounds), key=lambda r: (load[r], r))
        ranks[rank].append(pieces[index])
        load[rank] += work[index]
    return [[*dealt, *(np.arange(0) for _ in range(rounds - len(dealt)))] for dealt in ranks]
