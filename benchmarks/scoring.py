"""Scoring 10,000 pairs with intervals, against jiwer without any, on the same generated pairs in one run.

    python benchmarks/scoring.py [--pairs 10000] [--json]

Ours is all of it: text rules, WER and CER, every test set, domain, pool and average, each with its interval. jiwer
gets texts that are already normalised, and gives one WER and one CER. Medians of CPU seconds; both must agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jiwer
import numpy as np

from caspi.scoring import profiles
from caspi.scoring.error_counts import count_errors
from caspi.scoring.scores import score_predictions

LETTERS = np.array(list("אבגדהוזחטיכלמנסעפצקרשת"))
TIMES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="print figures for machines")
    arguments = parser.parse_args()
    predictions = make_predictions(arguments.pairs)
    references, hypotheses = (
        [profiles.apply("hebrew-fair", line[side]) for line in predictions] for side in ("reference", "hypothesis")
    )

    ours, scores = _timed(lambda: _cold(predictions))
    counting, counts = _timed(lambda: count_errors(references, hypotheses))
    theirs, output = _timed(lambda: (jiwer.wer(references, hypotheses), jiwer.cer(references, hypotheses)))
    pooled = next(score for score in scores if score.group == "all")
    assert (pooled.wer.value, pooled.cer.value) == output == (counts.wer, counts.cer), "ours and jiwer's must agree"

    figures = {
        "pairs": arguments.pairs,
        "ours, all of it, seconds": ours,
        "ours, error counts alone, seconds": counting,
        "jiwer, error rates alone, seconds": theirs,
        "jiwer / ours, error counts": round(theirs / counting, 1),
        "jiwer without intervals / ours with all": round(theirs / ours, 1),
    }
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:<45} {value:,}")
    print(f"WER {pooled.wer.value:.4f} (95%: {pooled.wer.low:.4f} to {pooled.wer.high:.4f})")


def make_predictions(pairs: int) -> list[dict[str, Any]]:
    """Hebrew-looking lines with the word frequencies of a language, 12% of the words wrong, some punctuation."""
    random = np.random.default_rng(42)
    vocabulary = np.array(["".join(random.choice(LETTERS, random.integers(2, 8))) for _ in range(30_000)])
    words = vocabulary[np.minimum(random.zipf(1.2, pairs * 16), len(vocabulary)) - 1].reshape(pairs, 16)
    lengths = random.integers(3, 17, pairs)
    predictions = []
    for number, (row, length) in enumerate(zip(words, lengths, strict=True)):
        heard = np.where(random.random(length) < 0.09, random.choice(vocabulary, length), row[:length])
        kept = heard[random.random(length) > 0.03]
        predictions.append(
            {
                "set": f"set-{number % 4}",
                "domain": f"domain-{number % 3}",
                "reference": " ".join(row[:length]) + ".?,"[number % 3],
                "hypothesis": " ".join(kept),
            }
        )
    return predictions


def _cold(predictions: list[dict[str, Any]]) -> list[Any]:
    """As in a fresh process: no word is remembered from the last time."""
    for rule in profiles.RULES.values():
        rule.cache_clear()  # type: ignore[attr-defined]
    return score_predictions(predictions, ["hebrew-fair"], seed=42)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    found = []
    for _ in range(TIMES):
        start = time.process_time()
        result = call()
        found.append(time.process_time() - start)
    return round(statistics.median(found), 3), result


if __name__ == "__main__":
    main()
