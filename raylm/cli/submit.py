"""raylm submit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raylm.cli.options import Config, Output, Sets, StorePlace, read_config
from raylm.cli.output import emit, say
from raylm.cli.run import Force, Resume

if TYPE_CHECKING:
    from raylm.deploy.job_log import JobLog
    from raylm.deploy.jobs import Job, Jobs

UNTIL = {
    "run": None, "data": "data", "train": "train", "eval": "evaluate", "compress": "compress",
}  # fmt: skip

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard, as in http://10.0.0.5:8265; its token is found by "
        "$RAY_AUTH_TOKEN_PATH. [default: the store's cluster that `raylm up` started]",
        show_default=False,
    ),
]


def submit(
    stage: Annotated[
        Literal["run", "data", "train", "eval", "compress"],
        typer.Argument(help="All stages (run), or up to one."),
    ] = "run",
    config: Config = None,
    sets: Sets = None,
    address: Address = None,
    ship: Annotated[
        bool,
        typer.Option(
            "--ship", help="Send this raylm along, where the cluster has none of its own."
        ),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Do not follow it: print its id and end.")
    ] = False,
    force: Force = None,
    resume: Resume = True,
    store: StorePlace = None,
    output: Output = "text",
) -> None:
    """Run stages as a Ray job on a cluster, and follow it; the exit code is the job's.

    The job goes on if this command ends. The cluster must reach the corpus and the store under
    the same paths, or as URLs.
    """
    loaded = read_config(config, sets)
    import os

    from raylm.deploy import submit as sending
    from raylm.deploy.dashboard import find_dashboard
    from raylm.deploy.jobs import Jobs
    from raylm.stages import check_stage
    from raylm.store import Store

    for name in force or ():
        check_stage(name)
    given = store or loaded.config.store
    opened = Store(given)
    dashboard = find_dashboard(opened, address)
    place = sending.store_there(given, os.environ, root=opened.root, is_ours=dashboard.is_ours)
    jobs = Jobs(dashboard)
    job_id = sending.submit(
        jobs, loaded, store=place, until=UNTIL[stage], force=force or (), resume=resume, ship=ship
    )
    say(f"submitted {job_id} to {dashboard.url}")
    if detach:
        job = jobs.get(job_id)
        emit({**job.to_dict(), "result": None, "error": None}, _howto(job_id), output)
        return
    job, log = follow(jobs, job_id)
    emit(document(job, log), end_text(job, log), output)
    raise typer.Exit(job.exit_code or 0)


def follow(jobs: Jobs, job_id: str) -> tuple[Job, JobLog]:
    """Show what a job writes until it has ended; Ctrl-C leaves the job or stops it."""
    from raylm.deploy.job_log import JobLog

    log = JobLog(show=say)
    try:
        job = jobs.follow(job_id, log.feed)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, KeyboardInterrupt) and _wants_it_stopped(job_id):
            jobs.stop(job_id)
            say(f"{job_id} is stopped")
        else:
            say(f"{job_id} goes on without this command\n{_howto(job_id)}")
        raise
    log.close()
    return job, log


def document(job: Job, log: JobLog) -> dict[str, object]:
    """A job that was read to its end, for JSON."""
    return {**job.to_dict(), "result": log.result, "error": log.error}


def end_text(job: Job, log: JobLog) -> str:
    """How a job ended, and what came of it, for people."""
    from raylm.cli.run import stages_text

    lines = [f"job {job.id} {job.state}, exit code {job.exit_code}"]
    if log.result is not None:
        lines = [stages_text(log.result["stages"], str(log.result["path"])), *lines]
    elif job.state == "failed" and log.error is None:
        # Not raylm's own words, so Ray's: it could not be started, or its driver was killed.
        lines += job.message.strip().splitlines()[:1]
    return "\n".join(lines)


def _wants_it_stopped(job_id: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        return not typer.confirm(f"\nleave {job_id} running?", default=True, err=True)
    except typer.Abort:
        return False


def _howto(job_id: str) -> str:
    return f"see it: raylm jobs logs -f {job_id}\nend it: raylm jobs stop {job_id}"
