"""Numbers as people read them: with units, true minus signs, and no more digits than they deserve."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from caspi.records.results import Estimate

MINUS = "\u2212"
DASH = "\u2013"  # between the ends of an interval
SPACE = "\u202f"  # narrow, never broken: between a number and its unit


def count(value: float) -> str:
    """186812 -> 186,812."""
    return f"{value:,.0f}".replace("-", MINUS)


def percent(share: float, digits: int = 1) -> str:
    """0.234 -> 23.4%."""
    return f"{share * 100:.{digits}f}%".replace("-", MINUS)


def signed(share: float, unit: str = "%", digits: int = 1) -> str:
    """-0.041 -> −4.1%; a rounded zero has no sign."""
    text = f"{share * 100:+.{digits}f}"
    if float(text) == 0:
        text = text[1:]
    return f"{text}{unit}".replace("-", MINUS).replace(" ", "\u00a0")


def interval(estimate: Estimate) -> str:
    """The ends of a 95% interval of a share: 20.1–26.9%."""
    return f"{estimate.low * 100:.1f}{DASH}{estimate.high * 100:.1f}%".replace("-", MINUS)


def signed_interval(estimate: Estimate) -> str:
    """The ends of a 95% interval of a difference, in points: −6.9 to −1.2."""
    return f"{signed(estimate.low, '')} to {signed(estimate.high, '')}"


def duration(seconds: float) -> str:
    """3 s, 2 min 31 s, 4 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60:02d}{SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{SPACE}h {minutes % 60:02d}{SPACE}min"


def hours(value: float) -> str:
    """Hours of audio: 0.62 h, 1,320 h."""
    return f"{value:,.0f}{SPACE}h" if value >= 100 else f"{value:.2f}{SPACE}h" if value < 10 else f"{value:.1f}{SPACE}h"


def rate(value: float) -> str:
    """A learning rate: 2.0e-4."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    mantissa = value / 10**exponent
    if round(mantissa, 1) >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    return f"{mantissa:.1f}e{exponent}".replace("e-", f"e{MINUS}")


def plain(value: float) -> str:
    """A loss, a norm, a speed: three significant digits."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return count(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}".replace("-", MINUS)


def size(value: float) -> str:
    """Bytes: 13 kB, 1.4 MB, 36.9 GB."""
    if value >= 999.5e6:
        return f"{value / 1e9:.1f}{SPACE}GB"
    if value < 999.5e3:
        return f"{value / 1e3:.0f}{SPACE}kB"
    return f"{value / 1e6:.1f}{SPACE}MB"


def moment(iso: str) -> str:
    """2026-11-21T07:28:11+00:00 -> 21 Nov 2026, 07:28 UTC; anything else as it is."""
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]  # not of the locale
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {months[when.month - 1]} {when.year}, {when:%H:%M} UTC"


def figure(value: Any, name: str = "") -> str:
    """A measurement of any kind, as a stage noted it under `name`."""
    if name in UNITS and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return UNITS[name](value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return plain(value) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {figure(item, name)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(figure(item) for item in value)
    return str(value)


def typeset(text: str) -> str:
    """Arrows and minus signs of a line that was made for terminals."""
    return re.sub(r"(?<![\w-])-(?=\d)", MINUS, text.replace(" -> ", " → "))


def plural(number: float, one: str, many: str | None = None) -> str:
    """1 utterance, 2 utterances."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


UNITS: dict[str, Callable[[float], str]] = {
    "audio_seconds": duration,
    "latency": lambda value: f"{plain(value)}{SPACE}s",
    "padding": percent,
    "peak_memory": size,
    "rtfx": lambda value: f"{plain(value)}×",
    "seconds": duration,
    "waited_for_data": percent,
}
"""How to write the measurements whose number alone doesn't say it."""

FILTERS = {
    "count": count,
    "percent": percent,
    "signed": signed,
    "interval": interval,
    "signed_interval": signed_interval,
    "duration": duration,
    "hours": hours,
    "rate": rate,
    "plain": plain,
    "size": size,
    "moment": moment,
    "figure": figure,
    "plural": plural,
    "typeset": typeset,
}
"""What the templates may use."""
