"""`raylm runs diff` for people."""

from __future__ import annotations

from typing import Any

from raylm.cli.output import human_bytes, table
from raylm.observe.difference import Difference, Row


def text_of(found: Difference) -> str:
    """What differs first, then what came of it."""
    a, b = found.runs
    parts = [f"a  {a}  {found.states[0]}\nb  {b}  {found.states[1]}"]
    for title, rows in (("config", found.config), ("data", found.data), ("code", found.code)):
        if rows:
            parts.append(table((title, "a", "b"), [(r.name, _cell(r.a), _cell(r.b)) for r in rows]))
        elif title == "data" and not found.has_data:
            parts.append("data: not made yet")
        else:
            parts.append(f"{title}: the same")
    if found.results:
        rows_ = [(r.name, _figure(r, r.a), _figure(r, r.b), _ratio(r)) for r in found.results]
        parts.append(table(("result", "a", "b", "b/a"), rows_))
    if found.losses:
        rows_ = [
            (f"{x.at:,}", f"{x.a:.4f}", f"{x.b:.4f}", f"{x.b - x.a:+.4f}") for x in found.losses
        ]
        at = "loss at step" if found.losses_by == "step" else "loss at tokens"
        parts.append(table((at, "a", "b", "b-a"), rows_))
        if found.losses_by == "step" and found.first_other_step is None:
            parts.append("losses: equal to the last digit at every common step")
        elif found.losses_by == "step":
            parts.append(
                f"losses: the first that differs is that of step {found.first_other_step:,}"
            )
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _figure(row: Row, value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return _cell(value)
    if row.name.endswith("bytes"):
        return human_bytes(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"


def _ratio(row: Row) -> str:
    numbers = (row.a, row.b)
    if any(not isinstance(x, int | float) or isinstance(x, bool) for x in numbers) or not row.a:
        return ""
    return f"{row.b / row.a:.3f}"
