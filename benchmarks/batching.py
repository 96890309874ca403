"""How much of a micro-batch is padding, and what a plan costs: this project's packing against fixed random batches.

    python benchmarks/batching.py          # prints a table; exit code 1 when a promise is broken

Both sides pack the same 200,000 durations (log-normal, 0.5 to 30 s, median 4.3 s: the shape of crowd speech).
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from caspi.training.batches import Floats, Indices, epoch_batches, padded_seconds, split_batch

UTTERANCES, GLOBAL_BATCH, LOOKED_AT = 200_000, 64, 400
SETTINGS = [(1, 60.0), (2, 60.0), (8, 60.0), (8, 120.0)]  # ranks, cap in padded seconds


def main() -> int:
    seconds = np.clip(np.random.default_rng(0).lognormal(1.45, 0.7, UTTERANCES), 0.5, 30)
    plans = [_timed(seconds, epoch) for epoch in range(5)]
    plan = min(spent for spent, _ in plans)
    batches = plans[0][1]
    print(f"plan of {UTTERANCES:,} utterances: {plan:.3f} CPU-seconds (best of 5), {len(batches):,} global batches")
    print(f"{'':32}{'padding':>9}{'idle':>7}{'longest micro-batch':>21}{'over the cap':>14}")
    failed = plan >= 0.1
    rows = []
    for ranks, cap in SETTINGS:
        own = [split_batch(seconds[batch], ranks, cap) for batch in _some(batches)]
        shuffled = np.random.default_rng(1).permutation(UTTERANCES)
        random = _some([shuffled[i : i + GLOBAL_BATCH] for i in range(0, UTTERANCES, GLOBAL_BATCH)])
        count = max(1, min(GLOBAL_BATCH // ranks, int(cap / np.mean(seconds))))  # as many as fit on average
        fixed = [_fixed(len(batch), ranks, count) for batch in random]
        for name, splits, of in (("packed", own, _some(batches)), (f"fixed {count}, random", fixed, random)):
            found = _measured(seconds, splits, of, cap)
            rows.append({"way": name, "ranks": ranks, "cap": cap, **found})
            print(
                f"{name:<16}{ranks:>2} ranks, cap {cap:>4.0f}{found['padding']:>9.1%}{found['idle']:>7.1%}"
                f"{found['longest']:>19.1f} s{found['over']:>14.1%}"
            )
            if name == "packed":
                failed |= found["padding"] > 0.05 or found["over"] > 0
    print(json.dumps({"plan_seconds": round(plan, 4), "rows": rows}))
    return int(failed)


def _timed(seconds: Floats, epoch: int) -> tuple[float, list[Indices]]:
    began = time.process_time()
    batches = epoch_batches(seconds, 42, epoch, GLOBAL_BATCH)
    return time.process_time() - began, batches


def _some(batches: list[Indices]) -> list[Indices]:
    return batches[:: len(batches) // LOOKED_AT]


def _fixed(count: int, ranks: int, size: int) -> list[list[Indices]]:
    """The usual way: each rank takes every ranks-th utterance, `size` at a time, whatever their length."""
    return [
        np.array_split(own, max(1, -(-len(own) // size))) for own in (np.arange(r, count, ranks) for r in range(ranks))
    ]


def _measured(
    seconds: Floats, splits: list[list[list[Indices]]], batches: list[Indices], cap: float
) -> dict[str, float]:
    useful = padded = paced = 0.0
    costs: list[float] = []
    for split, batch in zip(splits, batches, strict=True):
        loads = [[padded_seconds(seconds[batch], micro) for micro in own] for own in split]
        useful += float(seconds[batch].sum())
        padded += sum(map(sum, loads))
        paced += max(map(sum, loads)) * len(loads)  # ranks wait for the slowest
        costs += [cost for own in loads for cost in own]
    return {
        "padding": 1 - useful / padded,
        "idle": 1 - padded / paced,
        "longest": max(costs),
        "over": float(np.mean(np.array(costs) > cap)),
    }


if __name__ == "__main__":
    sys.exit(main())
