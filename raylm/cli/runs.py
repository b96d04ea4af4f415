"""raylm runs ls|show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, Output, StorePlace, open_store
from raylm.cli.output import emit, human_bytes, human_s, say, table
from raylm.errors import ConfigError, nearest

if TYPE_CHECKING:
    from raylm.store import Store

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="List and show runs.")


@app.command("ls")
def list_runs(config: Config = None, store: StorePlace = None, output: Output = "text") -> None:
    """Runs of the store, oldest first."""
    records = _records(open_store(store, config))
    rows = [
        {
            **{key: record.get(key) for key in ("id", "name", "state", "started", "error")},
            "stages": {s["stage"]: s["state"] for s in record.get("stages", [])},
        }
        for record in records
    ]
    cells = [
        (
            r["id"],
            r["state"],
            r["started"],
            " ".join(f"{s['stage']}:{s['state']}" for s in r["stages"]),
        )
        for r in records
    ]
    text = table(("id", "state", "started", "stages"), cells)
    emit(rows, text if rows else "", output)
    if not rows:
        say("there is none yet; `raylm run` makes one")


@app.command("show")
def show(
    run: Annotated[str, typer.Argument(help="A run's id, or its start.")],
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """A run: its stages, their results, and the last line of its metrics."""
    opened = open_store(store, config)
    record = _find(opened, run)
    path = opened.root / "runs" / record["id"]
    record |= {"path": str(path), "last_metrics": _last_metrics(path)}
    lines = [
        f"id       {record['id']}",
        f"state    {record['state']}" + (f": {record['error']}" if record.get("error") else ""),
        f"started  {record['started']}",
        f"path     {path}",
        "",
        table(
            ("stage", "state", "time", "result"),
            [
                (s["stage"], s["state"], human_s(s.get("seconds") or 0), s.get("ref") or "")
                for s in record.get("stages", [])
            ],
        ),
        *_cost(record),
        *(f"{file}: {json.dumps(last)}" for file, last in record["last_metrics"].items()),
    ]
    emit(record, "\n".join(lines), output)


def _cost(record: dict[str, Any]) -> list[str]:
    """What the train stage was predicted to cost, beside what it did."""
    found = [s["metrics"] for s in record.get("stages", []) if s["stage"] == "train"]
    predicted = found[0].get("plan") if found else None
    if not predicted:
        return []
    rows = [
        (what, *(form(value) if value is not None else "not known" for value in values))
        for what, form, values in (
            ("memory of a worker", human_bytes, _pair(found[0], "memory_bytes")),
            ("tokens/s", lambda value: f"{value:,.0f}", _pair(found[0], "tokens_per_s")),
            ("training steps, time", human_s, _pair(found[0], "train_s")),
        )
    ]
    return ["", table(("cost", "predicted", "measured"), rows), ""]


_MEASURED = {"memory_bytes": "peak_memory_bytes"}


def _pair(metrics: dict[str, Any], name: str) -> tuple[float | None, float | None]:
    return metrics["plan"].get(name), metrics.get(_MEASURED.get(name, name))


def _records(store: Store) -> list[dict[str, Any]]:
    found = []
    for path in (store.root / "runs").glob("*/run.json"):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            say(f"{path} cannot be read and is left out")
    return sorted(found, key=lambda r: str(r.get("started")))


def _find(store: Store, wanted: str) -> dict[str, Any]:
    records = _records(store)
    fitting = [r for r in records if r["id"] == wanted] or [
        r for r in records if r["id"].startswith(wanted)
    ]
    if len(fitting) == 1:
        return fitting[0]
    ids = [r["id"] for r in records]
    if fitting:
        raise ConfigError(
            f"{wanted!r} fits several: {', '.join(r['id'] for r in fitting)}", code="run-ambiguous"
        )
    close = nearest(wanted, ids)
    raise ConfigError(
        f"there is no run {wanted!r} in {store.root}",
        code="run-not-found",
        hint=f"did you mean {close!r}?" if close else "`raylm runs ls` shows what is there",
    )


def _last_metrics(path: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(path.glob("**/metrics.jsonl")):
        for line in reversed(file.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                # The very last line may be half written.
                found[str(file.relative_to(path))] = json.loads(line)
                break
            except ValueError:
                continue
    return found
