"""Predictions -> scores of each test set, each domain, all of them pooled, and the average over the sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caspi.errors import UserError
from caspi.records.results import Estimate, Score
from caspi.scoring.error_counts import ErrorCounts, Errors, count_errors
from caspi.scoring.profiles import apply
from caspi.scoring.significance import Floats, interval, rate, rates, resampled_sums
from caspi.spec.data import Profile

Mask = npt.NDArray[np.bool_]


def score_predictions(predictions: Sequence[Mapping[str, Any]], profiles: Sequence[Profile], seed: int) -> list[Score]:
    """Score lines of predictions.jsonl (`set`, `domain`, `reference`, `hypothesis`): every group by every profile.

    Intervals come from utterances drawn anew within each set, since the sets' sizes are given and not chance.
    """
    grouping = Grouping.of(predictions)
    counts = [counts_of(predictions, profile) for profile in profiles]
    columns = [column for c in counts for unit in (c.words, c.characters) for column in (unit.total, unit.length)]
    estimates = {}
    for group, measured in grouping.measure(np.column_stack(columns).astype(np.float64), seed):
        for index, profile in enumerate(profiles):
            estimates[group, profile] = [measured.rate(4 * index + offset, 4 * index + offset + 1) for offset in (0, 2)]
    return [
        _score(group, profile, counts[index].words.select(mask), *estimates[group, profile])
        for group, mask in grouping.masks.items()
        for index, profile in enumerate(profiles)
    ]


def counts_of(predictions: Sequence[Mapping[str, Any]], profile: Profile) -> ErrorCounts:
    """Errors of each prediction, both of its sides under `profile`."""
    return count_errors(*([apply(profile, line[side]) for line in predictions] for side in ("reference", "hypothesis")))


@dataclass(frozen=True, slots=True)
class Measured:
    """The sums of one group, as found and resampled, in parts that are averaged: one part, or one for each set."""

    found: list[Floats]
    """[columns] each."""
    drawn: list[Floats]
    """[resamples, columns] each."""

    def rate(self, errors: int, length: int) -> Estimate:
        """The error rate from two columns."""
        return interval(self._found(errors, length), self._drawn(errors, length))

    def difference(self, baseline: int, candidate: int, length: int) -> Estimate:
        """Candidate minus baseline, paired."""
        value = self._found(candidate, length) - self._found(baseline, length)
        return interval(value, self._drawn(candidate, length) - self._drawn(baseline, length))

    def _found(self, errors: int, length: int) -> float:
        return float(np.mean([rate(part[errors], part[length]) for part in self.found]))

    def _drawn(self, errors: int, length: int) -> Floats:
        mean: Floats = np.mean([rates(part[:, errors], part[:, length]) for part in self.drawn], axis=0)
        return mean


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which predictions belong to which group."""

    sets: npt.NDArray[np.int64]
    """The number of its set, [utterances]."""
    masks: dict[str, Mask]
    """By group: `set:NAME`, `domain:NAME`, `all`, `average`."""

    @classmethod
    def of(cls, predictions: Sequence[Mapping[str, Any]]) -> Grouping:
        if not predictions:
            raise UserError("there are no predictions to score; are the test sets empty?")
        sets, domains = (np.array([line[key] for line in predictions]) for key in ("set", "domain"))
        everything = np.ones(len(predictions), bool)
        return cls(
            sets=np.unique(sets, return_inverse=True)[1],
            masks={
                **{f"set:{name}": sets == name for name in np.unique(sets)},
                **{f"domain:{name}": domains == name for name in np.unique(domains)},
                "all": everything,
                "average": everything,
            },
        )

    def measure(self, columns: Floats, seed: int) -> Iterator[tuple[str, Measured]]:
        """Every group with the sums of `columns`, [utterances, columns], over all groups from the same draws."""
        width = columns.shape[1]
        domains = [mask for group, mask in self.masks.items() if group.startswith("domain:")]
        masked = np.hstack([columns, *(columns * mask[:, None] for mask in domains)])
        drawn = resampled_sums(masked, self.sets, seed)
        found = {stratum: masked[self.sets == stratum].sum(axis=0) for stratum in drawn}
        sets = [Measured([found[i][:width]], [drawn[i][:, :width]]) for i in drawn]
        pooled = [
            Measured([np.sum([*found.values()], axis=0)[part]], [np.sum([*drawn.values()], axis=0)[:, part]])
            for part in (slice(i * width, (i + 1) * width) for i in range(len(domains) + 1))
        ]
        average = Measured([s.found[0] for s in sets], [s.drawn[0] for s in sets])
        yield from zip(self.masks, [*sets, *pooled[1:], pooled[0], average], strict=True)


def _score(group: str, profile: Profile, words: Errors, wer: Estimate, cer: Estimate) -> Score:
    return Score(
        group=group,
        profile=profile,
        utterances=len(words.length),
        words=int(words.length.sum()),
        substitutions=int(words.substitutions.sum()),
        deletions=int(words.deletions.sum()),
        insertions=int(words.insertions.sum()),
        wer=wer,
        cer=cer,
    )
