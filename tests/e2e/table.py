"""What a run of `make e2e` saw, kept in docs/e2e.json, and the tables of docs/kubernetes.md.

RAYLM_E2E_OUT=docs/e2e.json make e2e
python -m tests.e2e.table docs/e2e.json --write docs/kubernetes.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.marked import put_between

MARKS = "<!-- e2e: made by `python -m tests.e2e.table` -->", "<!-- /e2e -->"
_PHASES = {
    "schedule_s": "schedule: Helm, the operator, a node for the head",
    "image_s": "image: on the node; until the head's container runs",
    "ray_s": "Ray: until its head has the application",
    "load_s": "load: workers join, replicas have the model",
    "first_token_s": "first token of a stream, through the Service",
}


def tables(found: dict[str, Any]) -> str:
    """The ways to the first token, and what clients saw of each event."""
    return "\n".join([*_starts(found["starts"]), "", *_events(found["events"])])


def _starts(starts: dict[str, list[dict[str, float]]]) -> list[str]:
    """The fastest and the slowest of the runs."""
    lines = [
        f"| from `helm install` to the first token, seconds | {' | '.join(starts)} |",
        f"|{'---|' * (len(starts) + 1)}",
    ]
    for key, text in _PHASES.items():
        cells = [_range([run[key] for run in runs]) for runs in starts.values()]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    sums = [_range([sum(run.values()) for run in runs]) for runs in starts.values()]
    return [*lines, f"| all | {' | '.join(sums)} |"]


def _events(events: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "| under load | times | requests | failed | longest gap in an answer, s "
        "| longest wait for a first token, s | recovery, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for event, runs in events.items():
        failures: Counter[str] = Counter()
        for run in runs:
            failures.update(run["failures"])
        kinds = ", ".join(f"{count} {kind}" for kind, count in failures.items())
        failed = f"{failures.total()} ({kinds})" if failures else "0"
        worst = [
            f"{max(run[key] for run in runs):.1f}"
            for key in ("longest_gap_s", "longest_first_s", "recovery_s")
        ]
        requests = sum(run["num_requests"] for run in runs)
        lines.append(f"| {' | '.join([event, str(len(runs)), str(requests), failed, *worst])} |")
    return lines


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or put them into a page."""
    parser = argparse.ArgumentParser(prog="tests.e2e.table", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    text = tables(json.loads(options.file.read_text()))
    if options.write:
        put_between(options.write, MARKS, text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
