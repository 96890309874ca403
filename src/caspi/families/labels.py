"""Whether a model is taught what it should be: what `caspi doctor` checks on a real batch before money is spent, and
what training refuses to start with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from caspi.families.base import Clip, Model, Speller

IGNORED = -100
"""A position without a label."""

UNKNOWN_AT_MOST = 0.02
"""Share of the tokens; above it the model can't write what it is told to."""


MANY_TEXTS = 2_000
"""More different texts than this are spelled word by word: 200,000 in seconds instead of a minute."""

COMPARED = 200
"""Texts that are then also spelled as a whole, to see that words stand by themselves."""


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What texts are after encoding and decoding. A text that stands there twice counts twice."""

    pieces: int
    kind: str
    """What was spelled at a time: `texts`, or `words` of many texts."""
    changed: list[tuple[str, str]]
    """(piece, what it came back as), where they differ; each piece once."""
    lossy: list[tuple[str, str]]
    """Those of them that have no unknown token: nothing says what was lost."""
    tokens: int
    unknown: int

    @property
    def unknown_rate(self) -> float:
        return self.unknown / self.tokens if self.tokens else 0.0


def round_trip(model: Speller, texts: Iterable[str]) -> RoundTrip:
    """Encode and decode each text, as training labels are.

    Many texts go word by word, which is the same where a tokenizer cuts at spaces; where it does not, and a
    comparison shows it, they go as a whole.
    """
    counted = Counter(texts)
    before = _first_word(model, counted) if len(counted) > MANY_TEXTS else None
    if before is None or not _words_stand_alone(model, counted, before):
        return _round_trip(counted, "texts", model.encode, model.decode, model.unknown)
    words: Counter[str] = Counter()
    for text, times in counted.items():
        for word in text.split(" "):
            words[word] += times
    first = model.encode(before)

    def encode(word: str) -> list[int]:
        return _after(model, before, word)

    def decode(ids: Sequence[int]) -> str:
        return model.decode([*first, *ids]).removeprefix(f"{before} ")

    return _round_trip(words, "words", encode, decode, model.unknown)


def _round_trip(
    counted: Counter[str],
    kind: str,
    encode: Callable[[str], list[int]],
    decode: Callable[[Sequence[int]], str],
    unknown: int | None,
) -> RoundTrip:
    changed, lossy = [], []
    tokens = lost_tokens = 0
    for piece, times in counted.items():
        ids = encode(piece)
        lost = 0 if unknown is None else ids.count(unknown)
        tokens += len(ids) * times
        lost_tokens += lost * times
        back = decode(ids)
        if back != piece:
            changed.append((piece, back))
            if not lost:
                lossy.append((piece, back))
    return RoundTrip(counted.total(), kind, changed, lossy, tokens, lost_tokens)


def _first_word(model: Speller, texts: Iterable[str]) -> str | None:
    """A word of the texts that comes back as it is; None when the first ones have none."""
    words = (text.split(" ")[0] for text in islice(texts, COMPARED))
    return next((word for word in words if model.decode(model.encode(word)) == word), None)


def _words_stand_alone(model: Speller, texts: Collection[str], before: str) -> bool:
    """Whether a text is spelled as its words are, each after a space."""
    for text in islice(texts, 0, None, max(1, len(texts) // COMPARED)):
        apart = [token for word in text.split(" ") for token in _after(model, before, word)]
        if _after(model, before, text) != apart:
            return False
    return True


def _after(model: Speller, before: str, text: str) -> list[int]:
    """The tokens of `text` when a word and a space stand before it."""
    return model.encode(f"{before} {text}")[len(model.encode(before)) :]


def spelling_problem(model: Speller, trip: RoundTrip) -> str | None:
    """Why these texts can't be learnt by this model, characters and way out named; None when they can."""
    if trip.unknown_rate > UNKNOWN_AT_MOST:
        lost = unknown_characters(model, trip)
        lower = [char for char in lost if char != char.upper()]
        cause, way_out = "", "choose text rules (data.text) that fit it"
        if lower and not any(_is_unknown(model, char.upper()) for char in lower):
            cause = "lower-case text against an upper-case vocabulary: "
            way_out = "write it in capitals, in English by data.text: english-upper-1"
        share = f"{trip.unknown_rate:.0%} of the tokens are unknown ({' '.join(lost)})"
        return f"{cause}{share}: WER would stay at 1.0; {way_out}"
    if trip.lossy:
        piece, back = trip.lossy[0]
        line = f"the tokenizer gives {len(trip.lossy):,} of {trip.pieces:,} {trip.kind} back changed"
        return f"{line} ({_short(piece)!r} as {_short(back)!r}): choose text rules (data.text) that fit it"
    return None


def unknown_characters(model: Speller, trip: RoundTrip, most: int = 12) -> list[str]:
    """Which characters have no token, of those in texts that came back changed: the most frequent, sorted."""
    counted = Counter(char for text, _ in trip.changed for char in text)
    return sorted([char for char, _ in counted.most_common() if _is_unknown(model, char)][:most])


def check_labels(model: Model, clips: Sequence[Clip], texts: Sequence[str]) -> list[str]:
    """Problems with the labels of these utterances as one batch; none when every row is labelled with all that is
    written for its text, and with nothing else."""
    batch = model.collate([model.example(clip, text) for clip, text in zip(clips, texts, strict=True)])
    labels = batch.tensors["labels"]
    problems = label_problems(model, labels, texts)
    labelled = int((labels != IGNORED).sum())
    if labelled != batch.tokens:
        problems.append(f"the batch says {batch.tokens} labelled tokens, and {labelled} are labelled")
    return problems


def label_problems(model: Speller, labels: torch.Tensor, texts: Sequence[str]) -> list[str]:
    """Rows of `labels` ([batch, time], IGNORED where there is none) that don't say exactly their text."""
    problems = []
    for row, (line, text) in enumerate(zip(labels, texts, strict=True), start=1):
        said = model.decode(line[line != IGNORED].tolist())
        if said != model.written(text):
            problems.append(
                f"row {row}: the labels say {_short(said)!r}, and should say {_short(model.written(text))!r}"
            )
    return problems


def _is_unknown(model: Speller, char: str) -> bool:
    return model.unknown is not None and model.unknown in model.encode(char)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:38]} ... {text[-38:]}"
