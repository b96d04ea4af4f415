"""Options that several commands have, described once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from raylm.config.load import Loaded
    from raylm.store import Store

DEFAULT_CONFIG = "raylm.yaml"

Config = Annotated[
    str | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help=f"Configuration: a file or a recipe's name. [default: ./{DEFAULT_CONFIG} if it is "
        "there, else raylm's defaults]",
        show_default=False,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value, as in train.steps=50; may be given again. [default: none]",
        show_default=False,
    ),
]
StorePlace = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PLACE",
        help="Folder of artifacts and runs, or s3:// or gs:// URL. [default: the config's, "
        "$RAYLM_STORE or ~/.raylm]",
        show_default=False,
    ),
]
Output = Annotated[
    Literal["text", "json"],
    typer.Option("-o", "--output", help="text, or json: one document on standard output."),
]


def read_config(
    config: str | None, sets: list[str] | None = None, base_dir: str | None = None
) -> Loaded:
    """The configuration of a command line."""
    from raylm.config.load import load_config

    if config is None and Path(DEFAULT_CONFIG).is_file():
        config = DEFAULT_CONFIG
    return load_config(config, sets or [], base_dir=base_dir)


def open_store(store: str | None, config: str | None = None) -> Store:
    """The store of a command line."""
    from raylm.store import Store

    return Store(store or read_config(config).config.store)
