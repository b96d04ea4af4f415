"""raylm runs ls|show|diff|report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, Output, StorePlace, open_store
from raylm.cli.output import emit, human_bytes, human_s, say, table
from raylm.errors import ConfigError, nearest

if TYPE_CHECKING:
    from raylm.observe.history import History
    from raylm.store import Store

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="List, show and compare runs.")


@app.command("ls")
def list_runs(config: Config = None, store: StorePlace = None, output: Output = "text") -> None:
    """Runs of the store, oldest first."""
    from raylm.observe.history import state_of

    records = _records(open_store(store, config))
    rows: list[dict[str, Any]] = [
        {
            **{key: record.get(key) for key in ("id", "name", "state", "started", "error")},
            "state": state_of(record),
            "stages": {s["stage"]: s["state"] for s in record.get("stages", [])},
        }
        for record in records
    ]
    cells = [
        (
            r["id"],
            r["state"],
            r["started"],
            " ".join(f"{stage}:{state}" for stage, state in r["stages"].items()),
        )
        for r in rows
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
    """A run: its stages, their results, and how its training stands or stood."""
    from raylm.observe.history import read_history

    opened = open_store(store, config)
    record = _find(opened, run)
    path = opened.root / "runs" / record["id"]
    history = read_history(opened, record)
    record |= {
        "state": history.state,
        "path": str(path),
        "last_metrics": _last_metrics(path),
        "last_step": history.steps[-1] if history.steps else None,
        "skips": history.skips,
    }
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
        *_training(history),
    ]
    emit(record, "\n".join(lines), output)


@app.command("diff")
def diff(
    a: Annotated[str, typer.Argument(help="A run's id, or its start.")],
    b: Annotated[str, typer.Argument(help="Another one's.")],
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """What differs between two runs, and what came of it; finished, running or killed ones."""
    from raylm.cli.difference import text_of
    from raylm.observe.difference import difference
    from raylm.observe.history import read_history

    opened = open_store(store, config)
    ours, theirs = (read_history(opened, _find(opened, name)) for name in (a, b))
    found = difference(ours, theirs)
    emit(found.to_dict(), text_of(found), output)


@app.command("report")
def report(
    run: Annotated[str, typer.Argument(help="A run's id, or its start.")],
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Write a run's HTML page anew, as far as the run has come, and print its path."""
    from raylm.observe.history import read_history
    from raylm.observe.report import write_report

    opened = open_store(store, config)
    record = _find(opened, run)
    path = write_report(opened.root / "runs" / record["id"], read_history(opened, record))
    emit({"run_id": record["id"], "report": str(path)}, str(path), output)


def _training(history: History) -> list[str]:
    """How the training stands, from its last step."""
    if not history.steps:
        return []
    last = history.steps[-1]
    horizon = last.get("horizon")
    rows = [
        ("step", f"{last['step']:,}" + (f" of {horizon:,}" if horizon else "")),
        ("loss", f"{last['loss']:.4f}"),
    ]
    if history.held_out:
        looked = history.held_out[-1]
        rows.append(("held out", f"{looked['held_out_loss']:.4f} at step {looked['step']:,}"))
    if "left_s" in last:
        mfu, left, recent = last["mfu"], last["left_s"], last["recent_tokens_per_s"]
        rows += [
            ("tokens/s", f"{recent:,.0f} lately, {last['tokens_per_s']:,.0f} overall"),
            ("MFU", "unknown" if mfu is None else f"{mfu:.1%}"),
            ("data wait", f"{1000 * last['data_wait_s']:.1f} ms a step"),
            ("memory", f"{human_bytes(last['max_memory_bytes'])} now, "
             f"{human_bytes(last['max_memory_peak_bytes'])} at most, of the fullest worker"),
        ]  # fmt: skip
        if history.state == "running":
            rows.append(("left", "unknown" if left is None else human_s(left)))
    from raylm.observe.difference import restarts

    if restarts(history.lines):
        rows.append(("restarts", str(restarts(history.lines))))
    rows += [("skipped", f"after step {s['step']:,}: {s['why']}") for s in history.skips]
    return ["", *(f"{name:<11}{what}" for name, what in rows)]


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
