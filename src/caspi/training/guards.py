"""What is looked at between loading a model and its first step: can it spell the text, can it learn each utterance?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from caspi.corpus.manifest import Utterance
from caspi.errors import UserError
from caspi.families.base import Model, Speller
from caspi.families.labels import round_trip, spelling_problem


def check_spelling(model: Speller, texts: Iterable[str]) -> None:
    """UserError when the model can't write the texts: too many unknown tokens, or a tokenizer that changes them."""
    if problem := spelling_problem(model, round_trip(model, texts)):
        raise UserError(problem)


def trainable(model: Model, utterances: Sequence[Utterance], fastest: float) -> tuple[list[Utterance], dict[str, int]]:
    """The utterances that the model can learn from, and how many are left out, by reason.

    `fastest` is the highest speed factor of the augmentation: it shortens an utterance, and what fits must fit in
    every epoch. UserError when nothing is left.
    """
    chosen, left_out = [], Counter[str]()
    for utterance in utterances:
        reason = model.unfit(utterance.seconds / fastest, utterance.text)
        if reason is None:
            chosen.append(utterance)
        else:
            left_out[reason] += 1
    if not chosen:
        why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(left_out.items()))
        raise UserError(f"no utterance can be trained on: {why}; look at audio and text of the sources")
    return chosen, dict(sorted(left_out.items()))
