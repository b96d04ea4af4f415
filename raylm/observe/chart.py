"""A line chart as SVG: points in, a string out, nothing to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 40


@dataclass(frozen=True, slots=True)
class Series:
    """One line; `points` are (x, y), points that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Draw the points themselves as well."""


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str) -> str:
    """An SVG element; empty text where there is nothing to draw."""
    drawn = [
        (s, points)
        for s in series
        if (points := [p for p in s.points if math.isfinite(p[0]) and math.isfinite(p[1])])
    ]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(y_label)} over {escape(x_label)}">'
    ]
    for y in y_ticks:
        _, py = place(x_ticks[0], y)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py}" y2="{py}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{py + 4}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        px, _ = place(x, y_ticks[0])
        parts.append(
            f'<text x="{px}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:g}</text>'
        )
    for index, (line, points) in enumerate(drawn):
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
        parts.append(f'<polyline class="line l{index}" points="{path}"/>')
        if line.dots:
            parts += [
                f'<circle class="dot l{index}" cx="{px:.1f}" cy="{py:.1f}" r="4"/>'
                for px, py in placed
            ]
        parts.append(
            f'<text class="key l{index}" x="{_WIDTH - _RIGHT}" y="{_TOP + 12 + 18 * index}" '
            f'text-anchor="end">{escape(line.name)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(14,{_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text></svg>"
    )
    return "".join(parts)


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`; at least two."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]
