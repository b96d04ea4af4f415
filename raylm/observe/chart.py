"""A line chart as SVG: points in, a string out, nothing to load, no script.

Colours come from the page's style sheet, so that one drawing is read on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 24, 14, 38
_KEY_LINE = 17
_MOST_POINTS = 600
"""Of one line: more than there are pixels would only make the page heavy."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line; `points` are (x, y), joined in their order; those not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Draw the points themselves as well."""
    style: Literal["first", "faint", "second"] = "first"


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at one x: an upright line over the whole height."""

    name: str
    x: float
    told: str
    """What a reader sees who rests on it."""
    style: Literal["restart", "skip"]


@dataclass(frozen=True, slots=True)
class Plot:
    """A heading and an SVG element."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where numbers lie on the drawing."""

    x_range: tuple[float, float]
    y_ticks: list[float]
    width: int
    height: int
    top: int

    def x(self, value: float) -> float:
        first, last = self.x_range
        share = (value - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return self.height - _BOTTOM - share * (self.height - self.top - _BOTTOM)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    width: int = 720,
    height: int = 300,
    from_zero: bool = False,
    explain_marks: bool = True,
) -> str:
    """An SVG element; empty text where there is nothing to draw.

    Args:
        marks: those outside the lines' range are left out.
        width, height: in the drawing's own units; the page scales it.
        from_zero: the y axis begins at nought.
        explain_marks: their names are in the key; one drawing of several with the same will do.
    """
    drawn = [(s, points) for s in series if (points := _finite(s.points))]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    x_range = (min(xs), max(xs))
    marks = [mark for mark in marks if x_range[0] <= mark.x <= x_range[1]]
    keys: list[tuple[str, str]] = [(s.name, s.style) for s, _ in drawn]
    if explain_marks:
        keys += list(dict.fromkeys((mark.name, mark.style) for mark in marks))
    rows = _key_rows(keys, width)
    frame = _Frame(
        x_range,
        ticks(0.0 if from_zero else min(ys), max(ys), wanted=6 if height > 200 else 4),
        width,
        height,
        _TOP + _KEY_LINE * len(rows),
    )
    return "".join(
        [
            f'<svg viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(y_label)} over {escape(x_label)}">',
            *_axes(frame, x_label, y_label),
            *(_mark(frame, mark) for mark in marks),
            *(part for line, points in drawn for part in _line(frame, line, points)),
            *_keys(rows),
            "</svg>",
        ]
    )


def thinned(
    points: Sequence[tuple[float, float]], most: int = _MOST_POINTS
) -> list[tuple[float, float]]:
    """At most about so many points; of those left out, none was the lowest or the highest of its
    stretch, so that a spike stays.
    """
    if len(points) <= most:
        return list(points)
    stretches = most // 2
    kept = []
    for i in range(stretches):
        part = points[i * len(points) // stretches : (i + 1) * len(points) // stretches]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`; at least two."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return thinned([p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])])


def _axes(frame: _Frame, x_label: str, y_label: str) -> list[str]:
    right, bottom = frame.width - _RIGHT, frame.height - _BOTTOM
    parts = []
    for value in frame.y_ticks:
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>'
        )
    for value in ticks(*frame.x_range, wanted=7 if frame.width > 500 else 5):
        if not frame.x_range[0] <= value <= frame.x_range[1]:
            continue
        parts.append(
            f'<text x="{frame.x(value):.1f}" y="{bottom + 17}" text-anchor="middle">'
            f"{_tick(value)}</text>"
        )
    middle = (frame.top + bottom) / 2
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{frame.height - 5}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text transform="translate(12,{middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _line(frame: _Frame, line: Series, points: list[tuple[float, float]]) -> list[str]:
    placed = [(frame.x(x), frame.y(y)) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    parts = [f'<polyline class="line {line.style}" points="{path}"/>']
    # A line of one point would not be seen.
    if line.dots or len(placed) == 1:
        parts += [
            f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
            f"<title>{escape(line.name)}: {value:.5g} at {at:g}</title></circle>"
            for (x, y), (at, value) in zip(placed, points, strict=True)
        ]
    return parts


def _mark(frame: _Frame, mark: Mark) -> str:
    x = frame.x(mark.x)
    return (
        f'<line class="mark {mark.style}" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" '
        f'y2="{frame.height - _BOTTOM}"><title>{escape(mark.told)}</title></line>'
    )


def _key_rows(keys: list[tuple[str, str]], width: int) -> list[list[tuple[str, str, int]]]:
    """Name, style and place of each key, in as many rows as they need above the lines."""
    rows: list[list[tuple[str, str, int]]] = [[]]
    x = _LEFT
    for name, style in keys:
        size = round(26 + 6.4 * len(name)) + 14
        if rows[-1] and x + size > width:
            rows.append([])
            x = _LEFT
        rows[-1].append((name, style, x))
        x += size
    # One line alone is named by its axis.
    return rows if len(keys) > 1 else []


def _keys(rows: list[list[tuple[str, str, int]]]) -> list[str]:
    return [
        f'<line class="key {style}" x1="{x}" x2="{x + 20}" y1="{y - 4}" y2="{y - 4}"/>'
        f'<text class="key" x="{x + 26}" y="{y}">{escape(name)}</text>'
        for row, keys in enumerate(rows)
        for name, style, x in keys
        for y in (_TOP + _KEY_LINE * row + 2,)
    ]
