"""Jobs: runs on a cluster as Ray jobs, through Ray's own jobs API.

A job lives on the cluster: its driver is started there, and goes on whatever happens to the
process that asked for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from raylm.deploy.dashboard import Dashboard
from raylm.deploy.job_log import JobLog
from raylm.errors import ConfigError, HostError, MissingExtra, nearest

STOP_WAIT_S = 30
"""What a driver gets between SIGTERM and SIGKILL to end its workers; Ray's default of 3 s is too
short. What it may save before that comes on top."""
_STOP_WAIT = "stop_wait_s"
ENDED = ("succeeded", "failed", "stopped")
_POLL_S = 0.5
_KILL_S = 30


@dataclass(frozen=True, slots=True)
class Job:
    """One job, as the cluster knows it."""

    id: str
    state: str
    """pending, running, succeeded, failed or stopped."""
    exit_code: int | None
    """What `raylm run` would have ended with here; None while it has not ended."""
    entrypoint: str
    message: str
    """Ray's own words on the state."""
    started: str | None
    """UTC, ISO 8601."""
    ended: str | None
    metadata: dict[str, str]
    """`run`, `stage` and `raylm` (its version) of what `raylm submit` sent, and `stop_wait_s`."""

    @property
    def stop_wait_s(self) -> int:
        """What its driver gets between SIGTERM and SIGKILL."""
        return int(self.metadata.get(_STOP_WAIT, STOP_WAIT_S))

    @property
    def has_ended(self) -> bool:
        """Whether its state is final."""
        return self.state in ENDED

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def exit_code(state: str, driver_code: int | None) -> int | None:
    """The exit code that stands for a job's end.

    The driver's own where it has one (a signal counts as shells do, 128 and its number), 143
    for one that was stopped, 3 where the cluster could not start it or lost it.
    """
    if state not in ENDED:
        return None
    if driver_code is not None:
        return driver_code if driver_code >= 0 else 128 - driver_code
    return {"succeeded": 0, "stopped": 143}.get(state, HostError.exit_code)


class Jobs:
    """The jobs of one cluster."""

    def __init__(self, dashboard: Dashboard) -> None:
        """Connect.

        Raises:
            HostError: it does not answer, refuses the token, or takes no jobs.
            MissingExtra: Ray's part for jobs is not installed.
        """
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise MissingExtra(error.name or "ray", extra="serve") from error
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.ERROR)
        self._dashboard = dashboard
        headers = {"Authorization": f"Bearer {dashboard.token}"} if dashboard.token else {}
        with self._errors():
            self._client: Any = JobSubmissionClient(dashboard.url, headers=headers)

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        *,
        runtime_env: dict[str, Any],
        metadata: dict[str, str],
        save_s: float = 0.0,
    ) -> None:
        """Hand a job over to the cluster.

        Args:
            save_s: what it may take to save when it is told to end, before it ends its workers.

        Raises:
            HostError: the cluster refuses it.
        """
        wait_s = str(STOP_WAIT_S + math.ceil(save_s))
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": wait_s}
        with self._errors():
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env={**runtime_env, "env_vars": variables},
                metadata={**metadata, _STOP_WAIT: wait_s},
            )

    def list(self) -> list[Job]:
        """All jobs that were submitted, oldest first; drivers that only connected are none."""
        with self._errors():
            found = self._client.list_jobs()
        jobs = [d for d in found if d.submission_id]
        return [_job(d) for d in sorted(jobs, key=lambda d: (d.start_time or 0, d.submission_id))]

    def find(self, wanted: str) -> Job:
        """The job with this id, or the only one whose id begins so.

        Raises:
            ConfigError: there is none, or several; with the nearest id.
        """
        jobs = self.list()
        fitting = [j for j in jobs if j.id == wanted] or [
            j for j in jobs if wanted and j.id.startswith(wanted)
        ]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            listed = ", ".join(job.id for job in fitting)
            raise ConfigError(f"{wanted!r} fits several: {listed}", code="job-ambiguous")
        close = nearest(wanted, [job.id for job in jobs])
        raise ConfigError(
            f"there is no job {wanted!r} on {self._dashboard.url}",
            code="job-not-found",
            hint=f"did you mean {close!r}?" if close else "`raylm jobs ls` shows what is there",
        )

    def get(self, job_id: str) -> Job:
        """The job with exactly this id."""
        with self._errors():
            return _job(self._client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """All that a job wrote so far; nothing if it has not begun."""
        with self._errors():
            return str(self._client.get_job_logs(job_id) or "")

    def follow(self, job_id: str, feed: Callable[[str], None]) -> Job:
        """Hand on what a job writes, as it writes it, until it has ended.

        Raises:
            HostError: the cluster does not answer any more.
        """
        from aiohttp import ClientError

        num_seen = 0

        def take(text: str) -> None:
            nonlocal num_seen
            num_seen += len(text)
            feed(text)

        while True:
            # Where no WebSocket gets through, or it breaks, the log is asked for instead.
            with suppress(ClientError, OSError, RuntimeError):
                asyncio.run(self._tail(job_id, take, num_seen))
            job = self.get(job_id)
            # Ray's follower can end before the last lines.
            take(self.log(job_id)[num_seen:])
            if job.has_ended:
                return job
            time.sleep(_POLL_S)

    async def _tail(self, job_id: str, feed: Callable[[str], None], num_known: int) -> None:
        async for text in self._client.tail_job_logs(job_id):
            new, num_known = text[num_known:], max(0, num_known - len(text))
            if new:
                feed(new)

    def stop(self, job_id: str) -> Job:
        """End a job: SIGTERM, then SIGKILL; returns when it has ended.

        Raises:
            HostError: it has not ended half a minute after it was killed.
        """
        with self._errors():
            self._client.stop_job(job_id)
        deadline = time.monotonic() + self.get(job_id).stop_wait_s + _KILL_S
        while not (job := self.get(job_id)).has_ended:
            if time.monotonic() > deadline:
                raise HostError(
                    f"job {job_id} was asked to end and has not (it is {job.state})",
                    code="job-stop-slow",
                    hint=f"`raylm jobs status {job_id}` shows when it has",
                )
            time.sleep(_POLL_S)
        return job

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Ray's and the connection's errors as raylm's."""
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        url = self._dashboard.url
        try:
            yield
        except AuthenticationError as error:
            what = "the token" if self._dashboard.token else "a request without a token"
            raise HostError(
                f"{url} refuses {what}",
                code="cluster-token-refused",
                hint="$RAY_AUTH_TOKEN_PATH names the file with that cluster's token (on its head "
                "node <store>/cluster/token, where `raylm up` started it)",
            ) from error
        except (ConnectionError, RequestException) as error:
            raise HostError(
                f"{url} does not answer",
                code="cluster-unreachable",
                hint="jobs go on without this command; `raylm jobs ls` once it answers again",
            ) from error
        except (RuntimeError, ValueError) as error:
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise HostError(
                f"{url} does not take this: {cause}",
                code="cluster-jobs",
                hint="is it the dashboard of a Ray cluster with ray[default] installed?",
            ) from error


def _job(details: Any) -> Job:
    state = str(details.status.value).lower()
    return Job(
        id=details.submission_id,
        state=state,
        exit_code=exit_code(state, details.driver_exit_code),
        entrypoint=details.entrypoint,
        message=details.message or "",
        started=_utc(details.start_time),
        ended=_utc(details.end_time),
        metadata=dict(details.metadata or {}),
    )


def _utc(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def read_log(text: str) -> JobLog:
    """A whole log."""
    log = JobLog()
    log.feed(text)
    log.close()
    return log
