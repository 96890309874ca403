"""Charts as inline SVG: pure functions from numbers to markup.

A chart is as wide as the page allows and its type never scales: x positions are percentages of the plot, y
positions are pixels. Only the lines themselves live in a stretched coordinate system (0 to 1000 across). Labels
stand outside of the plot (`overflow: visible`); the stylesheet leaves them room. Colour never carries a fact
alone: every line and mark has its label beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

Format = Callable[[float], str]

HEIGHT = 180  # pixels of a line chart's plot
ACROSS = 1000  # units of the stretched coordinate system


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]
    tone: str
    """`tone-1` to `tone-6`, a colour of the stylesheet."""
    marked: bool = False
    """A dot on each point: few and precious ones."""
    faint: bool = False
    """Behind the others and without a label."""
    label: str | None = None
    """What stands under its name; the last value without it."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a phase begins."""

    at: float
    name: str


@dataclass(frozen=True, slots=True)
class Interval:
    """A dot with its 95% interval."""

    value: float
    low: float
    high: float
    tone: str
    text: str
    """The value in words, written beside it."""
    hollow: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an interval chart."""

    label: str
    note: str
    intervals: Sequence[Interval]
    limits: Sequence[tuple[float, str]] = ()
    """Where a threshold lies, and what it is called."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar."""

    name: str
    value: float
    tone: str


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that cover [low, high], at a distance of 1, 2, 2.5 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        high = low + 1 if math.isfinite(low) else 1.0
        low = low if math.isfinite(low) else 0.0
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(first, last + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    form: Format,
    *,
    boundaries: Sequence[Boundary] = (),
    across: tuple[float, float] | None = None,
    tick: Format = "{:g}".format,
) -> Markup:
    """Lines over steps, with phases marked and each line named at its end. Empty markup without any point."""
    values = [y for line in series for _, y in line.points]
    if not values:
        return Markup("")
    xs = [x for line in series for x, _ in line.points]
    left, right = across or (min(xs), max(xs))
    right = right if right > left else left + 1
    levels = ticks(min(0.0, *values), max(values))
    bottom, top = levels[0], levels[-1]

    def x(value: float) -> float:
        return (value - left) / (right - left)

    def y(value: float) -> float:
        return HEIGHT * (1 - (value - bottom) / (top - bottom))

    parts = [_grid(levels, y, tick), _steps(left, right, x)]
    parts += [_boundary(boundary, x(boundary.at)) for boundary in boundaries if left <= boundary.at < right]
    for line in sorted(series, key=lambda line: not line.faint):
        parts.append(_line(line, x, y))
    named = [line for line in series if line.points and not line.faint]
    places = spread([y(line.points[-1][1]) for line in named], gap=26, low=4, high=HEIGHT - 16)
    parts += [_end_label(line, place, form) for line, place in zip(named, places, strict=True)]
    said = "; ".join(
        f"{line.name} from {form(line.points[0][1])} at step {line.points[0][0]:,.0f}"
        f" to {form(line.points[-1][1])} at step {line.points[-1][0]:,.0f}"
        for line in named
    )
    return _svg(f"{title}: {said}", "plot lines", HEIGHT, parts)


def interval_chart(title: str, rows: Sequence[Row], form: Format) -> Markup:
    """Dots with their intervals on one scale from zero, a row for each group."""
    if not any(row.intervals for row in rows):
        return Markup("")
    ends = [interval.high for row in rows for interval in row.intervals]
    levels = ticks(0.0, max(*ends, *(at for row in rows for at, _ in row.limits), 1e-9))
    top = levels[-1]
    parts: list[Markup] = []
    at = 0
    for row in rows:
        parts.append(_row(row, at, top))
        at += 38 + 20 * len(row.intervals)
    height = at - 8
    scale = [
        Markup('<line class="grid" x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="{1}"/>').format(100 * level / top, height)
        + Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="middle">{}</text>').format(
            100 * level / top, height + 18, form(level)
        )
        for level in levels
    ]
    said = "; ".join(f"{row.label}: {', '.join(interval.text for interval in row.intervals)}" for row in rows)
    return _svg(f"{title}. {said}", "plot intervals", height, [*scale, *parts])


def bar(title: str, parts: Sequence[Part], total: float | None = None) -> Markup:
    """One bar of stacked parts, as long as their share of `total` (by default their sum)."""
    whole = total if total is not None else sum(part.value for part in parts)
    drawn: list[Markup] = []
    start = 0.0
    for part in parts:
        if part.value <= 0 or whole <= 0:
            continue
        share = 100 * part.value / whole
        drawn.append(
            Markup('<rect class="{}" x="{:.3f}%" y="0" width="{:.3f}%" height="12"><title>{}</title></rect>').format(
                part.tone, start, share, f"{part.name}: {part.value:,.0f}"
            )
        )
        start += share
    said = ", ".join(f"{part.name} {part.value:,.0f}" for part in parts if part.value > 0)
    return _svg(f"{title}: {said or 'nothing'}", "bar", 12, drawn)


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: means over equal stretches, so that no spike is chosen and none is lost."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    chunks = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def smooth(points: Sequence[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """A centred moving mean over `reach` points to each side, shorter at the ends."""
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    found: list[tuple[float, float]] = []
    for index, (at, _) in enumerate(points):
        side = min(reach, index, len(points) - 1 - index)
        found.append((at, (sums[index + side + 1] - sums[index - side]) / (2 * side + 1)))
    return found


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart until they are `gap` from each other, in their order, within [low, high] if they fit."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [0.0] * len(places)
    previous = low - gap
    for index in order:
        previous = max(places[index], previous + gap)
        moved[index] = previous
    ceiling = max(high, low + gap * (len(places) - 1))
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _grid(levels: Sequence[float], y: Callable[[float], float], form: Format) -> Markup:
    return Markup("").join(
        Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y(level))
        + Markup('<text class="tick" x="-8" y="{:.1f}" text-anchor="end">{}</text>').format(y(level) + 4, form(level))
        for level in levels
    )


def _steps(left: float, right: float, x: Callable[[float], float]) -> Markup:
    inside = [level for level in ticks(left, right, about=3) if left <= level <= right]
    shown = Markup("").join(
        Markup('<text class="tick" x="{:.2f}%" y="{}" text-anchor="middle">{}</text>').format(
            100 * x(level), HEIGHT + 18, f"{level:,.0f}"
        )
        for level in inside
    )
    return shown + Markup('<text class="tick" x="100%" dx="22" y="{}">step</text>').format(HEIGHT + 18)


def _boundary(boundary: Boundary, share: float) -> Markup:
    return Markup(
        '<line class="boundary" x1="{0:.2f}%" x2="{0:.2f}%" y1="-6" y2="{1}"/>'
        '<text class="phase" x="{0:.2f}%" dx="4" y="2">{2}</text>'
    ).format(100 * share, HEIGHT, boundary.name)


def _line(line: Series, x: Callable[[float], float], y: Callable[[float], float]) -> Markup:
    if not line.points:
        return Markup("")
    path = " L".join(f"{ACROSS * x(at):.1f} {y(value):.1f}" for at, value in line.points)
    drawn = Markup(
        '<svg viewBox="0 0 {0} {1}" width="100%" height="{1}" preserveAspectRatio="none" overflow="visible">'
        '<path class="{2}" d="M{3}" vector-effect="non-scaling-stroke"/></svg>'
    ).format(ACROSS, HEIGHT, f"line {line.tone}{' faint' if line.faint else ''}", path)
    if line.marked or len(line.points) == 1:
        drawn += Markup("").join(
            Markup('<circle class="{}" cx="{:.2f}%" cy="{:.1f}" r="3"/>').format(line.tone, 100 * x(at), y(value))
            for at, value in line.points
        )
    return drawn


def _end_label(line: Series, place: float, form: Format) -> Markup:
    return Markup(
        '<text class="name {}" x="100%" dx="10" y="{:.1f}">{}<tspan class="value" x="100%" dx="10" dy="13">{}</tspan>'
        "</text>"
    ).format(line.tone, place, line.name, line.label or form(line.points[-1][1]))


def _row(row: Row, at: int, top: float) -> Markup:
    drawn = Markup('<text class="row" x="0" y="{}">{}<tspan class="note" dx="8">{}</tspan></text>').format(
        at + 14, row.label, row.note
    )
    end = at + 22 + 20 * len(row.intervals)
    for limit, name in row.limits:
        drawn += Markup(
            '<line class="limit" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1}" y2="{2}"><title>{3}</title></line>'
        ).format(100 * limit / top, at + 20, end, name)
    for index, interval in enumerate(row.intervals):
        middle = at + 31 + 20 * index
        drawn += Markup(
            '<g class="{tone}{hollow}"><title>{text}</title>'
            '<line class="range" x1="{low:.2f}%" x2="{high:.2f}%" y1="{y}" y2="{y}"/>'
            '<circle cx="{value:.2f}%" cy="{y}" r="5"/>'
            '<text class="value" x="100%" dx="12" y="{base}">{text}</text></g>'
        ).format(
            tone=interval.tone,
            hollow=" hollow" if interval.hollow else "",
            text=interval.text,
            low=100 * max(interval.low, 0.0) / top,
            high=100 * interval.high / top,
            value=100 * interval.value / top,
            y=middle,
            base=middle + 4,
        )
    return drawn


def _svg(said: str, kind: str, height: int, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="{}" height="{}" role="img" aria-label="{}">{}</svg>').format(
        kind, height, said, Markup("").join(parts)
    )
