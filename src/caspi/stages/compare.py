"""Compare: two benchmarks of the same test sets -> paired differences with intervals, and a verdict."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from caspi.errors import UserError
from caspi.files import atomic, file_digest, read_json_lines
from caspi.records.results import CompareResults, Delta, Estimate
from caspi.records.round_dir import RoundDir
from caspi.scoring.scores import Grouping, counts_of
from caspi.spec.data import Profile
from caspi.stages.stage import Outcome, Stage

Line = Mapping[str, Any]

DECISIVE = "average"
"""The group that decides: every test set counts alike, as it does in a round's target, however large it is."""

Verdict = Literal["better", "worse", "no difference shown"]


def inputs(round_dir: RoundDir) -> Mapping[str, str]:
    parent = _parent(round_dir)
    return {
        "benchmark": round_dir.succeeded("benchmark").digest,
        "parent benchmark": parent.succeeded("benchmark").digest,
    }


def work(round_dir: RoundDir) -> Outcome:
    parent = _parent(round_dir)
    baseline, candidate, alone = paired_lines(recorded_predictions(parent), recorded_predictions(round_dir))
    profiles = round_dir.spec.benchmark.profiles
    deltas = compare(baseline, candidate, profiles, round_dir.spec.seed)
    names = (parent.spec.round, round_dir.spec.round)
    decisive = next(delta for delta in deltas if delta.group == DECISIVE and delta.profile == profiles[0])
    folder = round_dir.folder("compare")
    with atomic(folder / "comparison.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(delta, *names) for delta in deltas)
    sets = sorted({line["set"] for line in candidate})
    return Outcome(
        results=CompareResults(
            baseline=names[0],
            candidate=names[1],
            deltas=deltas,
            verdict=verdict(decisive.difference),
            sentence=sentence(decisive, *names, sets=sets, alone=alone),
        ),
        outputs=["comparison.csv"],
    )


STAGE = Stage(name="compare", inputs=inputs, work=work)


def compare(baseline: Sequence[Line], candidate: Sequence[Line], profiles: Sequence[Profile], seed: int) -> list[Delta]:
    """Candidate minus baseline, for every group and profile. Line i of both is the same utterance."""
    grouping = Grouping.of(candidate)
    columns: list[Any] = []
    for profile in profiles:
        before, after = (counts_of(lines, profile).words for lines in (baseline, candidate))
        columns += [before.total, after.total, after.length]
    deltas = []
    for group, measured in grouping.measure(np.column_stack(columns).astype(np.float64), seed):
        for index, profile in enumerate(profiles):
            first, second, length = 3 * index, 3 * index + 1, 3 * index + 2
            old, new = measured.rate(first, length).value, measured.rate(second, length).value
            difference = measured.difference(first, second, length)
            deltas.append(
                Delta(
                    group=group,
                    profile=profile,
                    utterances=int(grouping.masks[group].sum()),
                    baseline_wer=old,
                    candidate_wer=new,
                    difference=difference,
                    relative=difference.value / old if old else 0.0,
                )
            )
    return deltas


def paired_lines(
    baseline: Sequence[Line], candidate: Sequence[Line]
) -> tuple[list[Line], list[Line], dict[str, list[str]]]:
    """The lines of both on the sets that both have, in one order, and the sets that only one has.

    UserError unless those sets hold the same utterances with the same references: anything else is no comparison.
    """
    before, after = _by_set(baseline), _by_set(candidate)
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise UserError(
            f"no test set is in both: the baseline has {_list(before)}, the candidate {_list(after)}; "
            "benchmark both rounds on the same sets"
        )
    problems = [problem for name in shared if (problem := _difference(name, before[name], after[name]))]
    if problems:
        raise UserError(*problems)
    pairs = [(before[name][key], after[name][key]) for name in shared for key in sorted(after[name])]
    alone = {"baseline": sorted(before.keys() - after.keys()), "candidate": sorted(after.keys() - before.keys())}
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs], alone


def verdict(difference: Estimate) -> Verdict:
    """Better or worse when the whole interval is on that side of zero."""
    if difference.high < 0:
        return "better"
    return "worse" if difference.low > 0 else "no difference shown"


def sentence(
    delta: Delta, baseline: str, candidate: str, *, sets: Sequence[str], alone: Mapping[str, list[str]]
) -> str:
    """The verdict with its figures, absolute and relative, and what they were measured on."""
    difference = delta.difference
    change = (
        f"WER {_percent(delta.baseline_wer)} -> {_percent(delta.candidate_wer)}, {100 * difference.value:+.1f} points "
        f"(95%: {100 * difference.low:+.1f} to {100 * difference.high:+.1f}), {100 * delta.relative:+.1f}% relative"
    )
    what = {
        "better": f"{candidate} is better than {baseline}",
        "worse": f"{candidate} is worse than {baseline}",
        "no difference shown": f"no difference between {candidate} and {baseline} is shown",
    }[verdict(difference)]
    over = f"average over {len(sets)} sets" if len(sets) > 1 else f"on {sets[0]}"
    left = [f"{name} only in the {side}" for side, names in alone.items() for name in names]
    note = f"; not compared: {', '.join(left)}" if left else ""
    return f"{what}: {change}, {over}, {delta.utterances:,} utterances, profile {delta.profile}{note}."


COLUMNS = (
    "group", "profile", "utterances", "baseline", "candidate", "baseline_wer", "candidate_wer",
    "difference", "difference_low", "difference_high", "relative", "verdict",
)  # fmt: skip


def _row(delta: Delta, baseline: str, candidate: str) -> list[object]:
    difference = delta.difference
    figures = (delta.baseline_wer, delta.candidate_wer, difference.value, difference.low, difference.high)
    return [
        delta.group,
        delta.profile,
        delta.utterances,
        baseline,
        candidate,
        *(f"{figure:.6f}" for figure in (*figures, delta.relative)),
        verdict(difference),
    ]


def _parent(round_dir: RoundDir) -> RoundDir:
    parent = round_dir.parent()
    if parent is None:
        raise UserError(
            f"{round_dir.spec.round} has nothing to compare with: it has no parent; "
            "name the baseline in the round file, for example `parent: hebrew-r1`"
        )
    return parent


def recorded_predictions(round_dir: RoundDir) -> list[Line]:
    """What the benchmark's record pins; UserError when the file is another one by now."""
    path = round_dir.folder("benchmark") / "predictions.jsonl"
    lines: list[Line] = [*read_json_lines(path)]
    if file_digest(path) != round_dir.succeeded("benchmark").outputs.get(path.name):
        raise UserError(
            "is not what the benchmark wrote; delete benchmark/record.json and run it again", where=str(path)
        )
    return lines


def _by_set(lines: Sequence[Line]) -> dict[str, dict[str, Line]]:
    sets: dict[str, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        sets[line["set"]][line["id"]] = line
    return dict(sets)


def _difference(name: str, before: Mapping[str, Line], after: Mapping[str, Line]) -> str | None:
    """What makes the set another one in the two benchmarks; None when it is the same."""
    way_out = "benchmark both rounds on the same test set"
    if before.keys() != after.keys():
        extra = len(before.keys() ^ after.keys())
        return f"test set {name}: {extra} utterances are in one benchmark only; {way_out}"
    changed = sum(before[key]["reference"] != after[key]["reference"] for key in before)
    return f"test set {name}: {changed} references differ; {way_out}" if changed else None


def _list(sets: Mapping[str, object]) -> str:
    return ", ".join(sorted(sets)) or "none"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
