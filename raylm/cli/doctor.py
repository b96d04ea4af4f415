"""raylm doctor."""

from __future__ import annotations

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, read_config
from raylm.cli.output import emit, table
from raylm.errors import HostError


def doctor(
    config: Config = None, sets: Sets = None, store: StorePlace = None, output: Output = "text"
) -> None:
    """Look whether this machine has what is needed; exit code 3 if something is missing."""
    loaded = read_config(config, sets)
    from raylm.deploy.host import examine
    from raylm.store import default_place

    place = store or loaded.config.store or default_place()
    checks = examine(loaded.config, place)
    bad = [check for check in checks if check.state == "fail"]
    text = table(("", "what", "found"), [(c.state, c.name, c.found) for c in checks])
    remedies = [f"{c.name}: {c.remedy}" for c in checks if c.remedy]
    if remedies:
        text += "\n\n" + "\n".join(remedies)
    emit(
        {"ok": not bad, "checks": [check.to_dict() for check in checks]},
        text,
        output,
    )
    if bad:
        raise typer.Exit(HostError.exit_code)
