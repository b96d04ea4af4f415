"""raylm init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raylm.cli.options import DEFAULT_CONFIG
from raylm.cli.output import say
from raylm.errors import ConfigError


def init(
    path: Annotated[Path, typer.Argument(help="File to write, or a folder for it.")] = Path(
        DEFAULT_CONFIG
    ),
    recipe: Annotated[
        str, typer.Option("--recipe", help="What to start from; `raylm config recipes` lists them.")
    ] = "pretrain",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented configuration to start from."""
    from raylm.artifact import disk_errors, write_atomic
    from raylm.config.load import recipe_text

    text = recipe_text(recipe)
    file = path / DEFAULT_CONFIG if path.is_dir() or not path.suffix else path
    if file.exists() and not force:
        raise ConfigError(
            f"{file} is there already",
            code="config-exists",
            hint="--force overwrites it; or give another PATH",
        )
    with disk_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, text)
    say(f"wrote {file}; edit it, then: raylm run -c {file}")
