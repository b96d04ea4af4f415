"""raylm jobs ls|status|logs|stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raylm.cli.options import Config, Output, StorePlace, open_store
from raylm.cli.output import emit, say, table
from raylm.cli.submit import Address, document, end_text, follow

if TYPE_CHECKING:
    from raylm.deploy.jobs import Jobs

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="See and stop what `raylm submit` started."
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or its start.")]


@app.command("ls")
def list_jobs(
    address: Address = None,
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Jobs of the cluster, oldest first."""
    jobs = _open(address, config, store).list()
    cells = [
        (j.id, j.state, "" if j.exit_code is None else j.exit_code, j.started or "", j.ended or "")
        for j in jobs
    ]
    text = table(("id", "state", "exit", "started", "ended"), cells) if jobs else ""
    emit([job.to_dict() for job in jobs], text, output)
    if not jobs:
        say("there is none yet; `raylm submit` makes one")


@app.command("status")
def status(
    job: JobId,
    address: Address = None,
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """How a job is, and if it has ended, its result or its error."""
    jobs = _open(address, config, store)
    found = jobs.find(job)
    from raylm.deploy.jobs import read_log

    log = read_log(jobs.log(found.id))
    text = f"job {found.id} {found.state}, since {found.started}"
    if found.has_ended:
        text = end_text(found, log)
    if log.error is not None:
        text += f"\nerror[{log.error['code']}]: {log.error['message']}"
        text += f"\nhint: {log.error['hint']}" if log.error["hint"] else ""
    emit(document(found, log), text, output)


@app.command("logs")
def logs(
    job: JobId,
    follows: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until it has ended; exit with its code.")
    ] = False,
    address: Address = None,
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """All that a job wrote."""
    jobs = _open(address, config, store)
    found = jobs.find(job)
    if not follows:
        text = jobs.log(found.id)
        emit({"id": found.id, "lines": text.splitlines()}, text, output)
        return
    ended, log = follow(jobs, found.id)
    emit(document(ended, log), end_text(ended, log), output)
    raise typer.Exit(ended.exit_code or 0)


@app.command("stop")
def stop(
    job: JobId,
    address: Address = None,
    config: Config = None,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """End a job, and wait until it has ended; what it finished stays, and it can resume."""
    jobs = _open(address, config, store)
    found = jobs.find(job)
    was_running = not found.has_ended
    if was_running:
        found = jobs.stop(found.id)
    text = (
        f"job {found.id} {found.state}" if was_running else f"{found.id} had ended: {found.state}"
    )
    emit({**found.to_dict(), "was_running": was_running}, text, output)


def _open(address: str | None, config: str | None, store: str | None) -> Jobs:
    opened = open_store(store, config)
    from raylm.deploy.dashboard import find_dashboard
    from raylm.deploy.jobs import Jobs

    return Jobs(find_dashboard(opened, address))
