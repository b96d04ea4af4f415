"""`raylm bench` for people."""

from __future__ import annotations

from raylm.bench.compare import Comparison, Ratio
from raylm.bench.figures import PERCENTILES, Figures
from raylm.bench.report import details, latency_rows
from raylm.bench.result import LevelResult, Run, warnings
from raylm.cli.output import table


def run_text(run: Run) -> str:
    """A line for each level, then all of it, then what to beware of."""
    found = [level.figures(run.slo) for level in run.levels]
    rows = [_row(level, figures) for level, figures in zip(run.levels, found, strict=True)]
    head = ["load", "answers", "failed", "requests/s", "tokens/s", "window, s"]
    head += ["prompt tokens", "output tokens"]
    if run.slo is not None:
        head += ["goodput", "goodput/s"]
    parts = [f"{run.settings.model} at {run.settings.url}", table(head, rows)]
    parts += [_level(level, figures) for level, figures in zip(run.levels, found, strict=True)]
    if any("~" in part for part in parts):
        parts.append("~  beyond it lies less than one of so few requests: it means nothing")
    if run.ceiling is not None:
        parts.append(
            f"this client's ceiling: {run.ceiling.requests_per_s:,.0f} requests/s of "
            f"{run.ceiling.chunks_per_request} pieces, {run.ceiling.chunks_per_s:,.0f} pieces/s"
        )
    return "\n\n".join(parts + [f"beware: {line}" for line in warnings(run)])


def _row(level: LevelResult, found: Figures) -> list[str]:
    row = [
        level.name,
        f"{found.num_ok:,}",
        f"{sum(found.failures.values()):,}",
        f"{found.requests_per_s:,.2f}",
        f"{found.output_tokens_per_s:,.1f}",
        f"{found.window_s:.1f}",
        *("-" if x is None else f"{x:,.1f}" for x in (found.prompt_tokens, found.output_tokens)),
    ]
    if found.goodput is not None:
        row += [f"{found.goodput.share:.1%}", f"{found.goodput.per_s:,.2f}"]
    return row


def _level(level: LevelResult, found: Figures) -> str:
    rows = [
        [name, *(text if is_meant else f"~{text}" for text, is_meant in cells)]
        for name, cells in latency_rows(found)
    ]
    said = details(level)
    lines = [table([f"{level.name}, ms", *PERCENTILES, "max", "mean"], rows)]
    lines += [
        f"failed: {count} x {name}" + (f": {said[name]}" if name in said else "")
        for name, count in found.failures.items()
    ]
    return "\n".join(lines)


def comparison_text(found: Comparison) -> str:
    """The ratios, and the verdict last."""
    rows = [
        [r.level, r.figure, _figure(r, r.old), _figure(r, r.new), f"{r.ratio:.3f}", interval(r),
         r.verdict]
        for r in found.ratios
    ]  # fmt: skip
    lines = [f"not the same load: {line}" for line in found.other_settings]
    lines += list(found.failures)
    lines += [f"of the older run: {line}" for line in found.doubts]
    lines += [f"only in one of the two: {name}" for name in found.missing]
    if rows:
        head = ("load", "figure", "old", "new", "new/old", "95 % interval", "")
        lines.append(table(head, rows))
    return "\n".join([*lines, f"verdict: {found.verdict}"])


def interval(ratio: Ratio) -> str:
    """`0.981 to 1.020`."""
    if ratio.low is None or ratio.high is None:
        return "not known"
    return f"{ratio.low:.3f} to {ratio.high:.3f}"


def _figure(ratio: Ratio, value: float) -> str:
    return f"{value:,.1f}" if ratio.figure.endswith("/s") else f"{1000 * value:,.2f} ms"
