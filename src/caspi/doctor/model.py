"""Checks of the base model against real utterances: tokenizer and labels. These load it, and so need torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caspi.corpus.audio import AudioError, decode
from caspi.corpus.text import normalise
from caspi.doctor.check import Lines, Patient
from caspi.doctor.data import encoded, first_rows
from caspi.errors import UserError
from caspi.families import family_of
from caspi.spec.models import is_repository

if TYPE_CHECKING:
    from caspi.families.base import Speller

LABELLED = 4  # utterances in the batch whose labels are looked at


def check_model(patient: Patient) -> Lines:
    """The tokenizer gives every text back, and a real batch labels exactly the targets."""
    if is_repository(patient.spec.model.base):
        yield "note", f"{patient.spec.model.base} is downloaded by the training; its tokenizer is not looked at now"
        return
    try:
        texts, clips = _utterances(patient)
    except UserError as error:
        yield "blocked", f"no utterances to try: {error}"
        return
    if not texts:
        yield "note", "all sources are on a hub, so no real batch can be tried before the export"
        return
    from caspi.families.labels import check_labels

    try:
        model = _load(patient, texts)
    except UserError as error:
        yield "blocked", str(error)
        return
    yield from judge_round_trip(model, texts)
    yield from judge_labels(check_labels(model, clips[:LABELLED], texts[:LABELLED]))


def _load(patient: Patient, texts: Sequence[str]) -> Any:
    spec = patient.spec
    family = family_of(spec.model)
    with tempfile.TemporaryDirectory() as scratch:
        return family.load(family.prepare(spec.model, texts, spec.seed, Path(scratch)), spec.model, "cpu")


def _utterances(patient: Patient) -> tuple[list[str], list[Any]]:
    """Texts and clips of some utterances that the export would keep."""
    texts, clips = [], []
    for index, source in enumerate(patient.spec.data.sources):
        if source.hub:
            continue
        for row in first_rows(source, patient.data_root, f"data.sources[{index}]"):
            text = normalise(patient.spec.data.text, row.text)
            data = encoded(row)
            if not text or data is None:
                continue
            try:
                clip = decode(data, row.id)
            except AudioError:  # the export drops and counts it
                continue
            texts.append(text)
            clips.append(clip)
    return texts, clips


def judge_round_trip(speller: Speller, texts: Sequence[str]) -> Lines:
    """Every text comes back from the tokenizer. The classic: lower-case text against an upper-case vocabulary."""
    from caspi.families.labels import round_trip, spelling_problem, unknown_characters

    trip = round_trip(speller, texts)
    if problem := spelling_problem(speller, trip):
        yield "blocked", problem
    elif trip.unknown:
        named = " ".join(unknown_characters(speller, trip))
        yield "note", f"tokenizer: {trip.unknown_rate:.1%} of {trip.tokens} tokens are unknown ({named}); the rest fits"
    else:
        line = f"{trip.pieces} {trip.kind} come back as they went in, {trip.tokens} tokens, none unknown"
        yield "ok", f"tokenizer: {line}"


def judge_labels(problems: Sequence[str]) -> Lines:
    """`problems` is what the family found wrong with the labels of a real batch."""
    for problem in problems:
        yield "blocked", f"labels: {problem}"
    if not problems:
        yield "ok", "labels: in a real batch exactly the targets are labelled, row by row, no prompt and no padding"
