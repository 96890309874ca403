"""What the samples and the text of a clip give away: silence, clipping, a low level, text that cannot fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import exp, log10

import numpy as np
import numpy.typing as npt

from caspi.corpus.manifest import Utterance
from caspi.spec.data import AuditCheck

SAMPLE_RATE = 16_000
FRAME = 320  # 20 ms

SILENT = -72.0
"""dBFS: below it, nobody speaks into a microphone that is on."""
QUIET = -45.0
"""dBFS: 20 dB below the softest level that speech is mastered at; codecs leave little of it."""
CLIPPED = 0.01
"""Speech spends 0.1% of its samples within 5% of the peak; flat tops make it several percent."""
TEXT_RATES = (1.0, 30.0)
"""Characters a second: nobody speaks slower or faster."""
OUTLIER = 5.0
"""Robust standard deviations, of the logarithm, from the source's median rate."""
ENOUGH = 30
"""Clips of a source from which on its own rates say what is usual."""


@dataclass(frozen=True, slots=True)
class Signals:
    """Measurements of one decoded clip. Levels are dB relative to full scale."""

    seconds: float
    peak: float
    level: float
    """Of the speech: the RMS that a twentieth of the 20 ms frames exceeds."""
    clipped: float
    """Share of the samples within 5% of the clip's own peak."""
    lead: float
    """Seconds before the first frame less than 30 dB below the level."""
    trail: float
    """Seconds after the last such frame."""
    silence: float
    """Share of the frames that lie further below."""


def measure(clip: npt.NDArray[np.float32]) -> Signals:
    """Measure a mono clip at 16 kHz, shape [samples], at least one."""
    magnitude = np.abs(clip)
    peak = float(magnitude.max())
    count = -(-len(clip) // FRAME)
    padded = np.zeros(count * FRAME, np.float32)
    padded[: len(clip)] = clip
    rms = np.sqrt(np.mean(np.square(padded.reshape(count, FRAME), dtype=np.float64), axis=1))
    level = float(np.quantile(rms, 0.95))
    loud = np.flatnonzero(rms > level * 10 ** (-30 / 20))
    first, last = (int(loud[0]), int(loud[-1])) if loud.size else (count, count - 1)
    return Signals(
        seconds=len(clip) / SAMPLE_RATE,
        peak=_decibels(peak),
        level=_decibels(level),
        clipped=float(np.mean(magnitude >= 0.95 * peak)) if peak else 0.0,
        lead=first * FRAME / SAMPLE_RATE,
        trail=(count - 1 - last) * FRAME / SAMPLE_RATE,
        silence=1 - loud.size / count,
    )


def _decibels(amplitude: float) -> float:
    return max(-120.0, 20 * log10(amplitude)) if amplitude > 0 else -120.0


def signal_problems(signals: Signals, expected_seconds: float) -> Iterator[tuple[AuditCheck, str]]:
    """What is wrong with the audio of one clip: (check, detail for people)."""
    missing = abs(signals.seconds - expected_seconds)
    if missing > max(0.1, 0.02 * expected_seconds):
        yield "undecodable", f"decodes to {signals.seconds:.2f} s of {expected_seconds:.2f} s"
    if signals.level < SILENT:
        yield "silent", f"speech level {signals.level:.0f} dBFS, peak {signals.peak:.0f} dBFS"
    elif signals.level < QUIET:
        yield "quiet", f"speech level {signals.level:.0f} dBFS, peak {signals.peak:.0f} dBFS"
    elif signals.clipped > CLIPPED:
        yield "clipped", f"{signals.clipped:.1%} of the samples lie at the peak of {signals.peak:.1f} dBFS"


def text_problems(utterances: Iterable[Utterance]) -> Iterator[tuple[Utterance, str]]:
    """Utterances whose text is far too long or short for their seconds, by what is usual in their source."""
    by_source: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_source[utterance.source].append(utterance)
    for source, members in sorted(by_source.items()):
        low, high = _usual_rates([rate for u in members if (rate := characters_per_second(u)) > 0])
        for utterance in members:
            rate = characters_per_second(utterance)
            if not low <= rate <= high:
                yield utterance, f"{rate:.1f} characters a second; {source} has {low:.1f} to {high:.1f}"


def characters_per_second(utterance: Utterance) -> float:
    return len(utterance.text) / utterance.seconds


def _usual_rates(rates: list[float]) -> tuple[float, float]:
    """Within OUTLIER robust deviations (1.4826 MAD) of the median; of logarithms, since rates are skewed."""
    if len(rates) < ENOUGH:
        return TEXT_RATES
    logs = np.log(rates)
    middle = float(np.median(logs))
    deviation = max(0.1, 1.4826 * float(np.median(np.abs(logs - middle))))
    low, high = exp(middle - OUTLIER * deviation), exp(middle + OUTLIER * deviation)
    return max(TEXT_RATES[0], low), min(TEXT_RATES[1], high)
