"""raylm models ls|show|verify|rm."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, Output, StorePlace, open_store
from raylm.cli.output import emit, human_bytes, say, table
from raylm.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from raylm.artifact import Artifact
    from raylm.store import Store

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="List, show, verify and remove artifacts: models, data sets and reports.",
)
Ref = Annotated[str, typer.Argument(help="A ref, a name (its newest), a digest, or its start.")]


@app.command("ls")
def list_models(
    every: Annotated[bool, typer.Option("--all", help="Data sets and reports too.")] = False,
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Models in the store, oldest first."""
    found = open_store(store, config).list(None if every else "model")
    rows = [_row(a) for a in found]
    text = table(
        ("ref", "size", "created"),
        [(r["ref"], human_bytes(r["size_bytes"]), r["created"]) for r in rows],
    )
    emit(rows, text if rows else "", output)
    if not rows:
        say("there is none yet; `raylm run` makes one")


@app.command("show")
def show(
    ref: Ref, config: Config = None, store: StorePlace = None, output: Output = "text"
) -> None:
    """An artifact: what it is, what it was made from, what was measured of it."""
    opened = open_store(store, config)
    found = opened.locate(ref)
    data = json.loads(found.manifest.to_json()) | {
        "ref": found.ref,
        "path": str(found.path),
        "size_bytes": found.size_bytes,
        "lineage": _lineage(opened, found),
    }
    lines = [
        f"ref       {found.ref}",
        f"path      {found.path}",
        f"digest    {found.digest}",
        f"size      {human_bytes(found.size_bytes)} in {len(found.manifest.files)} files",
        f"created   {found.manifest.created}",
        f"lineage   {' <- '.join(data['lineage'])}",
        *(f"metric    {name} = {value}" for name, value in found.manifest.metrics.items()),
        *(f"config    {name} = {value}" for name, value in found.manifest.config.items()),
        *(f"version   {name} {value}" for name, value in found.manifest.versions.items()),
    ]
    emit(data, "\n".join(lines), output)


@app.command("verify")
def verify(
    refs: Annotated[
        list[str] | None,
        typer.Argument(help="What to verify. [default: everything]", show_default=False),
    ] = None,
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Hash every file again and compare with the manifest; exit code 1 if one differs."""
    opened = open_store(store, config)
    chosen = [opened.locate(ref) for ref in refs] if refs else opened.list()
    results = [_verify(opened, found) for found in chosen]
    text = "\n".join(f"{'ok     ' if r['ok'] else 'ALTERED'}  {r['ref']}" for r in results)
    emit(results, text, output)
    bad = [r for r in results if not r["ok"]]
    if bad:
        raise ArtifactError(
            "\n".join(r["error"] for r in bad),
            code="artifact-altered",
            hint="remove it (`raylm models rm`) and run the stage that makes it again",
        )


@app.command("rm")
def remove(
    refs: Annotated[list[str], typer.Argument(help="What to remove; a name means its newest.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = None,
    store: StorePlace = None,
) -> None:
    """Remove artifacts and what engines derived from them; refused while others descend."""
    opened = open_store(store, config)
    chosen = [opened.locate(ref) for ref in refs]
    if not yes:
        names = ", ".join(f"{a.ref} ({human_bytes(a.size_bytes)})" for a in chosen)
        if not sys.stdin.isatty():
            raise ConfigError(
                f"this would remove {names}", code="not-confirmed", hint="--yes does it"
            )
        if not typer.confirm(f"remove {names}?", err=True):
            raise typer.Exit(1)
    for found in chosen:
        opened.remove(found)
        say(f"removed {found.ref}")


def _row(found: Artifact) -> dict[str, Any]:
    return {
        "ref": found.ref,
        "kind": found.kind,
        "name": found.manifest.name,
        "digest": found.digest,
        "size_bytes": found.size_bytes,
        "created": found.manifest.created,
        "parents": list(found.manifest.parents),
        "path": str(found.path),
        "metrics": found.manifest.metrics,
    }


def _verify(store: Store, found: Artifact) -> dict[str, Any]:
    from raylm import artifact as artifacts

    try:
        artifacts.verify(store.open(found.path))
    except ArtifactError as error:
        return {"ref": found.ref, "ok": False, "error": error.message}
    return {"ref": found.ref, "ok": True}


def _lineage(store: Store, found: Artifact) -> list[str]:
    """Refs from the artifact back to the data; a digest where one is gone."""
    refs, queue = [], [found.digest]
    while queue:
        digest = queue.pop(0)
        ancestor = store.by_digest(digest)
        name = ancestor.ref if ancestor else digest[:12]
        if name not in refs:
            refs.append(name)
            queue.extend(ancestor.manifest.parents if ancestor else ())
    return refs
