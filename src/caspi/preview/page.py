"""The preview as one page that needs nothing else: sounds and pictures inside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from caspi.errors import UserError
from caspi.families.base import SAMPLE_RATE, Clip
from caspi.families.mel import LogMel
from caspi.files import write_text
from caspi.preview.heard import Heard, hear
from caspi.preview.picture import data_uri
from caspi.records.round_dir import RoundDir
from caspi.report import render as report
from caspi.report.diffs import direction, visible
from caspi.report.formats import FILTERS

MOST = 50
"""Utterances in one page."""
WAVEFORM_BINS = 80  # of the picture of what a network reads as a waveform


@dataclass(frozen=True, slots=True)
class Side:
    """One version of an utterance, to be looked at and listened to."""

    title: str
    seconds: float
    sound: str
    picture: str
    width: float
    """In percent of the longer version: a faster one is a narrower one."""
    facts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Shown:
    """One utterance on the page."""

    id: str
    domain: str
    text: str
    direction: str
    sides: Sequence[Side]


def write_preview(round_dir: RoundDir, count: int = 8, epoch: int = 0) -> Path:
    """Write preview/epoch-N.html into the round's directory: what training hears in that epoch (counted from 0)."""
    if not 1 <= count <= MOST:
        raise UserError(f"--count {count}: from 1 to {MOST} utterances fit into a page")
    found = hear(round_dir, count, epoch)
    path = round_dir.path / "preview" / f"epoch-{epoch}.html"
    write_text(path, render(round_dir, found, epoch))
    return path


def render(round_dir: RoundDir, found: Sequence[Heard], epoch: int) -> str:
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, report.HERE / "templates"]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= FILTERS | {"visible": visible}
    spec = round_dir.spec
    return environment.get_template("page.html.j2").render(
        spec=spec,
        augment=spec.train.augment,
        epoch=epoch,
        shown=[_shown(one) for one in found],
        waveform=any(len(one.features) == 1 for one in found),
    )


def _shown(one: Heard) -> Shown:
    utterance = one.utterance
    plain, features, hidden = _pictures(one)
    low, high = float(plain.min()), float(plain.max())
    longest = max(plain.shape[1], features.shape[1])
    versions = (
        ("As it is", one.before, plain, np.zeros_like(plain, dtype=np.bool_), ()),
        ("In training", one.after, features, hidden, _facts(one, hidden)),
    )
    sides = [
        Side(
            title=title,
            seconds=len(clip) / SAMPLE_RATE,
            sound=_flac(clip),
            picture=data_uri(values, grey, low, high),
            width=round(100 * values.shape[1] / longest, 2),
            facts=facts,
        )
        for title, clip, values, grey, facts in versions
    ]
    return Shown(utterance.id, utterance.domain, visible(utterance.text), direction(utterance.text), sides)


def _pictures(one: Heard) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """[bins, frames] before and after, and what of the latter is hidden."""
    if len(one.features) > 1:
        return one.plain, one.features, one.masked
    mel = LogMel(WAVEFORM_BINS)
    after = mel(one.after)
    hop = SAMPLE_RATE // 100
    centres = np.minimum(np.arange(after.shape[1]) * hop, one.masked.shape[1] - 1)
    return mel(one.before), after, np.broadcast_to(one.masked[0, centres], after.shape)


def _facts(one: Heard, hidden: npt.NDArray[np.bool_]) -> list[str]:
    facts = [f"speed {one.speed:g}"]
    facts.append(f"noise {one.snr:.1f} dB below the speech" if one.snr is not None else "no noise")
    rows, columns = int(hidden.all(axis=1).sum()), int(hidden.all(axis=0).sum())
    if hidden.any():
        bins, frames = hidden.shape
        banded = f"{rows} of {bins} bins, " if len(one.features) > 1 else ""
        facts.append(f"hidden: {banded}{columns} of {frames} frames")
    else:
        facts.append("nothing hidden")
    return facts


def _flac(clip: Clip) -> str:
    with io.BytesIO() as file:
        soundfile.write(file, np.clip(clip, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"
