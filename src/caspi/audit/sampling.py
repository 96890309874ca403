"""Which utterances are listened to, and what they say about those that are not."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Sequence
from math import ceil

import numpy as np

from caspi.corpus.manifest import Utterance
from caspi.records.results import Estimate
from caspi.scoring.significance import Stratum, stratified_share
from caspi.spec.data import Sample

SECONDS = (2.0, 5.0, 10.0, 20.0)
"""Bounds between the duration buckets of the strata."""
AT_LEAST = 50
"""Of each stratum (or all of it), so that small domains can be judged."""

Key = tuple[str, str, int]


def stratum(utterance: Utterance) -> Key:
    """Source, domain and duration bucket."""
    return utterance.source, utterance.domain, bisect_right(SECONDS, utterance.seconds)


def choose(utterances: Sequence[Utterance], sample: Sample, seed: int) -> set[str]:
    """Ids of a seeded sample, in proportion to each stratum's size with a floor for small ones."""
    strata: dict[Key, list[str]] = defaultdict(list)
    for utterance in utterances:
        strata[stratum(utterance)].append(utterance.id)
    wanted = min(len(utterances), max(ceil(sample.share * len(utterances)), sample.at_least))
    random = np.random.default_rng([seed, 0xA0D17])
    chosen: set[str] = set()
    for _, members in sorted(strata.items()):
        count = min(len(members), max(AT_LEAST, ceil(wanted * len(members) / len(utterances))))
        chosen.update(sorted(members)[index] for index in random.permutation(len(members))[:count])
    return chosen


def low_quality_share(
    utterances: Sequence[Utterance],
    sampled: Collection[str],
    low: Collection[str],
    left_out: Collection[str] = (),
    left_out_anyway: Collection[str] = (),
) -> Estimate:
    """The share of low-quality utterances in what training sees: all `utterances` but those `left_out`.

    `left_out_anyway` are those of them that a check in ALL utterances found: the sample without them speaks for the
    utterances nobody listened to, from which checks of the sample alone leave out nothing.
    """
    strata: dict[Key, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        strata[stratum(utterance)].append(utterance)
    return stratified_share(
        [_stratum(members, sampled, low, left_out, left_out_anyway) for _, members in sorted(strata.items())]
    )


def _stratum(
    members: Sequence[Utterance],
    sampled: Collection[str],
    low: Collection[str],
    left_out: Collection[str],
    left_out_anyway: Collection[str],
) -> Stratum:
    seen = [one.id for one in members if one.id in sampled]
    stays = [name for name in seen if name not in left_out]
    speaks = [name for name in seen if name not in left_out_anyway]
    return Stratum(
        known=len(stays),
        known_hits=sum(name in low for name in stays),
        unseen=sum(one.id not in sampled and one.id not in left_out for one in members),
        trials=len(speaks),
        hits=sum(name in low for name in speaks),
    )
