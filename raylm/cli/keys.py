"""raylm keys create|ls|revoke."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, read_config
from raylm.cli.output import emit, say, table
from raylm.errors import ConfigError

if TYPE_CHECKING:
    from raylm.serve.keys import KeyRecord

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="API keys of the endpoint: who may use it, and how much.",
)
Name = Annotated[str, typer.Argument(help="The tenant: who gets the key.")]
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@app.command("create")
def create_key(
    name: Name,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="infer: everything under /v1; metrics: /metrics; may be given again. "
            "[default: infer]",
            show_default=False,
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Names of the models it may use. [default: all]", show_default=False
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="[default: no limit]", show_default=False)
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(min=1, help="Of prompts and answers. [default: no limit]", show_default=False),
    ] = None,
    max_concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Requests at a time. [default: no limit]", show_default=False),
    ] = None,
    weight: Annotated[
        float,
        typer.Option(
            min=0.001, max=1000, help="Share beside others when more is wanted than there is."
        ),
    ] = 1.0,
    max_priority: Annotated[
        int, typer.Option(min=-100, max=100, help="Highest `priority` its requests may have.")
    ] = 0,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="30d", help="From now: 45m, 12h, 30d, 4w. [default: never]", show_default=False
        ),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Make a key and print it: once, for it is kept only as a hash.

    An endpoint that was started with keys knows it within seconds; one that was started without
    asks for none until it is started again.
    """
    from raylm.serve.keys import Grant, create, now_utc

    path, now = _path(config, sets, store), now_utc()
    grant = Grant(
        name=name,
        scopes=tuple(scope or ("infer",)),
        models=tuple(m.strip() for m in models.split(",") if m.strip()) if models else None,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrency=max_concurrency,
        weight=weight,
        max_priority=max_priority,
        expires=None if expires is None else now + _duration(expires),
    )
    key, record = create(path, grant, now)
    emit({"key": key, **_row(record), "path": str(path)}, key, output)
    say(f"this is shown once; its hash is in {path}")


@app.command("ls")
def list_keys(
    config: Config = None, sets: Sets = None, store: StorePlace = None, output: Output = "text"
) -> None:
    """Keys, oldest first, with what they allow; never the keys themselves."""
    from raylm.serve.keys import read_store

    rows = [_row(record) for record in read_store(_path(config, sets, store)).keys]
    head = ("name", "state", "scopes", "models", "req/min", "tokens/min", "at a time", "weight",
            "priority", "created", "expires")  # fmt: skip
    cells = [
        (
            r["name"], r["state"], ",".join(r["scopes"]), ",".join(r["models"] or ("all",)),
            r["requests_per_minute"] or "-", r["tokens_per_minute"] or "-",
            r["max_concurrency"] or "-", f"{r['weight']:g}", r["max_priority"],
            r["created"], r["expires"] or "never",
        )
        for r in rows
    ]  # fmt: skip
    emit(rows, table(head, cells) if rows else "", output)
    if not rows:
        say("there is none yet; `raylm keys create NAME` makes one")


@app.command("revoke")
def revoke_key(
    name: Name,
    config: Config = None,
    sets: Sets = None,
    store: StorePlace = None,
) -> None:
    """Revoke the key of a name; a running endpoint refuses it within seconds."""
    from raylm.serve.keys import now_utc, revoke

    path = _path(config, sets, store)
    revoke(path, name, now_utc())
    say(f"revoked {name}")


def _path(config: str | None, sets: list[str] | None, store: str | None) -> Path:
    """The key store of a command line: `serve.api_keys`, else the one in the store."""
    from raylm.serve.keys import FILE
    from raylm.store import default_place, local_root

    loaded = read_config(config, sets)
    if loaded.config.serve.api_keys is not None:
        return (loaded.base_dir / Path(loaded.config.serve.api_keys).expanduser()).absolute()
    return local_root(store or loaded.config.store or default_place()) / FILE


def _row(record: KeyRecord) -> dict[str, Any]:
    from raylm.serve.keys import now_utc

    row = record.model_dump(mode="json", exclude={"sha256", "id"})
    return row | {"state": record.state(now_utc())}


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhdw])", text)
    if found is None:
        raise ConfigError(
            f"--expires {text}: a number with m, h, d or w is expected",
            code="key-invalid",
            hint="--expires 30d",
        )
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
