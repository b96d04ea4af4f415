"""Which parameters each call takes, ignores and refuses: the table in docs/serving.md.

`python -m raylm.serve.parameters docs/serving.md` (make generate) writes it between its marks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from raylm.serve.asked import Asked
from raylm.serve.table import ROUTES

BEGIN = "<!-- parameters: made by `python -m raylm.serve.parameters` (make generate) -->"
END = "<!-- /parameters -->"


def table() -> str:
    """Markdown: a line for each parameter, a column for each call."""
    calls = {route.name: _known(route.asked) for route in ROUTES if route.asked is not None}
    names = sorted({name for known in calls.values() for name in known})
    lines = [f"| | {' | '.join(calls)} |", f"|---|{'---|' * len(calls)}"]
    for name in names:
        cells = " | ".join(known.get(name, "") for known in calls.values())
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines)


def write(page: Path) -> None:
    """Put the table between its marks."""
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _known(body: type[Asked]) -> dict[str, str]:
    taken = {name: "ignored" if name in body.ignored else "yes" for name in body.model_fields}
    return taken | dict.fromkeys(body.unsupported, "refused")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
