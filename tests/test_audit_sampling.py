"""Sampling: seeded, in proportion, and honest about what nobody listened to."""

from __future__ import annotations

import numpy as np
import pytest

from caspi.audit.sampling import choose, low_quality_share, stratum
from caspi.corpus.manifest import Utterance
from caspi.spec.data import Sample


def corpus(size: int, seed: int = 0) -> list[Utterance]:
    random = np.random.default_rng(seed)
    return [
        Utterance(
            id=f"crowd/{i}", audio=f"crowd/{i}", text="א", source="crowd", seconds=float(random.choice([1, 4, 8])),
            domain=str(random.choice(["phone", "studio", "rare"], p=[0.7, 0.29, 0.01])),
        )
        for i in range(size)
    ]  # fmt: skip


def test_a_sample_follows_its_seed_and_not_the_order() -> None:
    utterances = corpus(3000)
    sample = Sample(share=0.1, at_least=100)
    assert choose(utterances, sample, 1) == choose(utterances[::-1], sample, 1)
    assert choose(utterances, sample, 1) != choose(utterances, sample, 2)


@pytest.mark.parametrize(
    ("size", "share", "at_least", "expected"),
    [(3000, 0.2, 1, 600), (3000, 0.0, 900, 900), (40, 0.1, 2000, 40), (3000, 1.0, 1, 3000), (0, 0.5, 10, 0)],
)
def test_how_many_are_chosen(size: int, share: float, at_least: int, expected: int) -> None:
    found = len(choose(corpus(size), Sample(share=share, at_least=at_least), 7))
    assert expected <= found <= expected + 9 * 50  # each of the nine strata has a floor


def test_every_stratum_is_heard() -> None:
    utterances = corpus(20_000)
    chosen = choose(utterances, Sample(share=0.01, at_least=1), 7)
    counts: dict[object, list[int]] = {}
    for one in utterances:
        counts.setdefault(stratum(one), [0, 0])
        counts[stratum(one)][0] += 1
        counts[stratum(one)][1] += one.id in chosen
    assert len(counts) == 9
    assert all(heard >= min(members, 50) for members, heard in counts.values())


def test_the_share_is_of_the_population_not_of_the_sample() -> None:
    """The rare domain is all bad and sampled far above its size: a plain mean of the sample would be far off."""
    utterances = corpus(20_000)
    low = {one.id for one in utterances if one.domain == "rare"}
    sampled = choose(utterances, Sample(share=0.01, at_least=1), 7)
    found = low_quality_share(utterances, sampled, low)
    assert found.low < len(low) / len(utterances) < found.high
    assert len(sampled & low) / len(sampled) > 3 * found.value


def test_leaving_out_in_a_census_leaves_nothing_low() -> None:
    utterances = corpus(500)
    everyone = {one.id for one in utterances}
    low = {one.id for one in utterances[:100]}
    assert low_quality_share(utterances, everyone, low).value == 0.2
    assert low_quality_share(utterances, everyone, low, left_out=low).high == 0
    half = {one.id for one in utterances[:50]}
    assert low_quality_share(utterances, everyone, low, left_out=half).value == 50 / 450


def test_leaving_out_of_a_sample_cleans_the_sample_alone() -> None:
    """Nobody listened to the others, so they stay as bad as the sample was: no credit for what was not done."""
    utterances = corpus(20_000)
    low = {one.id for index, one in enumerate(utterances) if index % 5 == 0}
    sampled = choose(utterances, Sample(share=0.05, at_least=1), 7)
    cleaned = low_quality_share(utterances, sampled, low, left_out=sampled & low)
    assert cleaned.low < 0.2 * 0.95 < cleaned.high + 0.01
    assert cleaned.value > 0.15


def test_what_is_left_out_everywhere_is_gone() -> None:
    utterances = corpus(20_000)
    low = {one.id for index, one in enumerate(utterances) if index % 5 == 0}
    sampled = choose(utterances, Sample(share=0.05, at_least=1), 7)
    assert low_quality_share(utterances, sampled, low, left_out=low, left_out_anyway=low).value == 0
