"""raylm run, and its stages one by one: data, train, eval, compress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, read_config
from raylm.cli.output import emit, human_s, table
from raylm.cli.progress import progress

if TYPE_CHECKING:
    from raylm.record import RunResult

Force = Annotated[
    list[str] | None,
    typer.Option(
        "--force",
        metavar="STAGE",
        help="Do this stage anew even if its result is there; may be given again. [default: none]",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on from a killed stage's checkpoints.")
]


def run(
    config: Config = None,
    sets: Sets = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="Begin here; what it needs must be there. [default: the first]",
            show_default=False,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="STAGE",
            help="End after this stage. [default: the last]",
            show_default=False,
        ),
    ] = None,
    force: Force = None,
    dry_run: DryRun = False,
    resume: Resume = True,
    base_dir: Annotated[
        str | None,
        typer.Option(
            "--base-dir",
            metavar="DIR",
            help="Where the configuration's relative paths start. [default: its own folder]",
            show_default=False,
        ),
    ] = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Run the stages data, train, evaluate, compress of a configuration.

    A stage whose inputs and configuration already have a result is skipped; one that was
    killed goes on where it was.
    """
    _run(config, sets, start, until, force, dry_run, resume, store, output, base_dir)


def data(
    config: Config = None,
    sets: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Clean and split the text, train the tokenizer, pack token shards."""
    _run(config, sets, None, "data", force, dry_run, True, store, output)


def train(
    config: Config = None,
    sets: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    resume: Resume = True,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Train the model, after the stages that it needs."""
    _run(config, sets, None, "train", force, dry_run, resume, store, output)


def evaluate(
    config: Config = None,
    sets: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Measure the model on held-out text, after the stages that this needs."""
    _run(config, sets, None, "evaluate", force, dry_run, True, store, output)


def compress(
    config: Config = None,
    sets: Sets = None,
    force: Force = None,
    dry_run: DryRun = False,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Make the model smaller and compare; exit code 4 if the gate is not met."""
    _run(config, sets, None, "compress", force, dry_run, True, store, output)


def _run(
    config: str | None,
    sets: list[str] | None,
    start: str | None,
    until: str | None,
    force: list[str] | None,
    dry_run: bool,
    resume: bool,
    store: str | None,
    output: str,
    base_dir: str | None = None,
) -> None:
    loaded = read_config(config, sets, base_dir)
    from raylm import pipeline
    from raylm.store import Store

    with progress() as report:
        result = pipeline.run(
            loaded,
            store=Store(store) if store else None,
            start=start,
            until=until,
            force=force or (),
            dry_run=dry_run,
            resume=resume,
            report=report,
        )
    emit(result.to_dict(), run_text(result), output)


def run_text(result: RunResult) -> str:
    """The stages of a run, and what became of each."""
    return stages_text(result.to_dict()["stages"], str(result.path))


def stages_text(stages: Sequence[Mapping[str, Any]], path: str) -> str:
    """The same of a run that was read from its JSON."""
    rows = [(s["stage"], s["state"], human_s(s["seconds"]), s["ref"] or "") for s in stages]
    return f"{table(('stage', 'state', 'time', 'result'), rows)}\nrun: {path}"
