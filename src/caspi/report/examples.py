"""Which predictions a reader should see, with their word diffs: what changed most, the worst, the typical."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapidfuzz.distance import Levenshtein

from caspi.report.diffs import Piece, direction, visible, word_diff
from caspi.report.sound import Clip, Clips

EACH = 4  # examples of a group
LONGEST = 200  # pieces of one diff


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of predictions.jsonl, as it is scored."""

    id: str
    set: str
    domain: str
    seconds: float
    audio: str
    reference: str
    hypothesis: str
    errors: int
    words: int
    refused: str = ""
    """Why the server gave no transcript, when it gave none."""

    @property
    def rate(self) -> float:
        return self.errors / max(self.words, 1)


@dataclass(frozen=True, slots=True)
class Heard:
    """What one model heard, against the reference."""

    who: str
    pieces: Sequence[Piece]
    errors: int
    refused: str = ""
    cut: int = 0
    """Pieces that are too many to show."""


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance, ready to be shown."""

    id: str
    set: str
    domain: str
    seconds: float
    words: int
    reference: str
    direction: str
    heard: Sequence[Heard]
    clip: Clip


@dataclass(frozen=True, slots=True)
class Group:
    """Examples of one kind."""

    title: str
    note: str
    examples: Sequence[Example]


def read_predictions(lines: Iterable[Mapping[str, Any]], scored: Callable[[str], str]) -> list[Prediction]:
    """Predictions with their texts as `scored` (a scoring profile) sees them."""
    found: list[Prediction] = []
    for line in lines:
        reference, hypothesis = scored(str(line["reference"])), scored(str(line["hypothesis"]))
        words = reference.split()
        found.append(
            Prediction(
                id=str(line["id"]),
                set=str(line["set"]),
                domain=str(line["domain"]),
                seconds=float(line["seconds"]),
                audio=str(line["audio"]),
                reference=reference,
                hypothesis=hypothesis,
                errors=Levenshtein.distance(words, hypothesis.split()),
                words=len(words),
                refused=str(line.get("error") or ""),
            )
        )
    return found


def choose(
    candidate: Sequence[Prediction],
    baseline: Sequence[Prediction],
    names: tuple[str, str | None],
    clips: Clips,
) -> list[Group]:
    """Groups of examples, none twice. `names`: of the round and of its parent."""
    name, parent = names
    before = {(p.set, p.id): p for p in baseline}
    gain = {
        (p.set, p.id): before[p.set, p.id].errors - p.errors
        for p in candidate
        if (p.set, p.id) in before and before[p.set, p.id].reference == p.reference
    }
    total, words = sum(p.errors for p in candidate), sum(p.words for p in candidate)
    typical = total / max(words, 1)
    left = sorted(candidate, key=lambda p: (p.set, p.id))
    groups: list[Group] = []

    def group(title: str, note: str, fits: Callable[[Prediction], bool], first: Callable[[Prediction], Any]) -> None:
        nonlocal left
        chosen = sorted((p for p in left if fits(p)), key=first)[:EACH]
        taken = {(p.set, p.id) for p in chosen}
        left = [p for p in left if (p.set, p.id) not in taken]
        if chosen:
            groups.append(Group(title, note, [_example(p, before, (name, parent), clips) for p in chosen]))

    if parent:
        group(
            "Most gained",
            f"{name} makes fewer errors than {parent}.",
            lambda p: gain.get((p.set, p.id), 0) > 0,
            lambda p: -gain[p.set, p.id],
        )
        group(
            "Most lost",
            f"{name} makes more errors than {parent}.",
            lambda p: gain.get((p.set, p.id), 0) < 0,
            lambda p: gain[p.set, p.id],
        )
    group("Worst", "The most word errors.", lambda p: p.errors > 0, lambda p: (-p.errors, -p.rate))
    group(
        "Typical",
        f"An error rate near that of all utterances, {typical:.1%}.",
        lambda p: p.words > 0,
        lambda p: (abs(p.rate - typical), -p.words),
    )
    return groups


def _example(
    prediction: Prediction,
    before: Mapping[tuple[str, str], Prediction],
    names: tuple[str, str | None],
    clips: Clips,
) -> Example:
    name, parent = names
    versions = [(name, prediction)]
    earlier = before.get((prediction.set, prediction.id))
    if parent and earlier and earlier.reference == prediction.reference:
        versions.insert(0, (parent, earlier))
    return Example(
        id=prediction.id,
        set=prediction.set,
        domain=prediction.domain,
        seconds=prediction.seconds,
        words=prediction.words,
        reference=visible(prediction.reference),
        direction=direction(prediction.reference, *(p.hypothesis for _, p in versions)),
        heard=[_heard(who, p) for who, p in versions],
        clip=clips.clip(prediction.audio),
    )


def _heard(who: str, prediction: Prediction) -> Heard:
    pieces = word_diff(prediction.reference, prediction.hypothesis)
    shown = [Piece(piece.kind, visible(piece.reference), visible(piece.hypothesis)) for piece in pieces[:LONGEST]]
    return Heard(who, shown, prediction.errors, visible(prediction.refused), max(0, len(pieces) - LONGEST))
