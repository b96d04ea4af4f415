"""Waiting for a deployment: signs of life while it comes up, and the reason when it does not."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raylm.errors import ConfigError, HostError, ModelError, RaylmError
from raylm.progress import Report, Tick
from raylm.serve.replica import CAUSE

POLL_S = 0.2
TICK_S = 2.0
_CAUSE = re.compile(re.escape(CAUSE) + r"(\w+)\[([a-z0-9_-]+)\] (.+)")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b.*")


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """One deployment as Serve sees it."""

    name: str
    running: int
    wanted: int
    unplaced: bool
    """Replicas have waited half a minute for a place and a process on some node."""
    message: str
    failed: bool


@dataclass(frozen=True, slots=True)
class AppState:
    """An application as Serve sees it."""

    status: str
    message: str
    deployments: tuple[DeploymentState, ...]


def judge(state: AppState) -> RaylmError | None:
    """The reason why an application will not come up, if it will not; pure."""
    texts = [d.message for d in state.deployments if d.message]
    for text in (*texts, state.message):
        if found := _CAUSE.search(text):
            kind = {"ConfigError": ConfigError, "HostError": HostError}.get(found[1], ModelError)
            return kind(found[3].strip(), code=found[2])
    broken = [d for d in state.deployments if d.failed]
    if state.status == "DEPLOY_FAILED" or broken:
        text = broken[0].message if broken else state.message
        return HostError(
            f"{broken[0].name if broken else 'the application'} does not start: "
            f"{last_exception(text)}",
            code="deploy-failed",
            hint="the replicas' own logs lie in Ray's log folder, under serve/",
        )
    return None


def last_exception(text: str) -> str:
    """The line of a traceback that names the exception; else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if _EXCEPTION.match(line)]
    return (named or lines or ["no reason was given"])[-1]


def progress(state: AppState) -> Tick:
    """What is up of what is wanted."""
    running = sum(d.running for d in state.deployments)
    wanted = sum(d.wanted for d in state.deployments)
    waiting = [d.name for d in state.deployments if d.running < d.wanted]
    text = f"starting {', '.join(waiting)}" if waiting else "replicas are up"
    return Tick("serve", text, running, wanted, "replicas")


def wait_running(
    look: Callable[[], AppState], wanted: Mapping[str, int], deadline_s: float, report: Report
) -> None:
    """Wait until every deployment has its replicas.

    `deadline_s` is on the monotonic clock.

    Raises:
        RaylmError: they will not come up, or not in time; with the reason in one line.
    """
    told_s = time.monotonic()
    while True:
        state, now = look(), time.monotonic()
        by_name = {d.name: d for d in state.deployments}
        up = all(n in by_name and by_name[n].running >= k for n, k in wanted.items())
        if up and state.status == "RUNNING":
            return
        reason = judge(state)
        if reason is not None:
            raise reason
        if now > deadline_s:
            raise _late(state)
        if now - told_s >= TICK_S:
            told_s = now
            report(progress(state))
        time.sleep(POLL_S)


def wait_answering(host: str, port: int, deadline_s: float, report: Report) -> None:
    """Wait until `/readyz` is 200 through the proxy.

    Raises:
        HostError: it is not by the deadline, with what it said last.
    """
    told_s, last = time.monotonic(), "nothing listens there"
    while True:
        status, last = probe(host, port, last)
        if status == 200:
            return
        now = time.monotonic()
        if now > deadline_s:
            raise HostError(
                f"http://{host}:{port}/readyz is not ready: {last}", code="endpoint-not-ready"
            )
        if now - told_s >= TICK_S:
            told_s = now
            report(Tick("serve", f"waiting for the endpoint: {last}"))
        time.sleep(POLL_S)


def probe(host: str, port: int, otherwise: str = "") -> tuple[int, str]:
    """Status and problems of `/readyz`; 0 where nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        raw = response.read(2**16)
    except (OSError, http.client.HTTPException):
        return 0, otherwise
    finally:
        connection.close()
    try:
        body: Any = json.loads(raw)
        return response.status, "; ".join(body["problems"])
    except (ValueError, KeyError, TypeError):
        return response.status, f"status {response.status}"


def _late(state: AppState) -> HostError:
    waiting = [f"{d.name} {d.running} of {d.wanted}" for d in state.deployments]
    if names := ", ".join(d.name for d in state.deployments if d.unplaced):
        return HostError(
            f"the cluster has not placed {names} in time ({', '.join(waiting)} replicas running)",
            code="not-placed",
            hint="other work may hold its CPUs: end it, or lower serve.replicas or "
            "serve.cpus_per_replica",
        )
    return HostError(
        f"the deployment is not up in time ({', '.join(waiting)} replicas running)",
        code="deploy-timeout",
        hint="raise serve.start_timeout_s, or look into the replicas' logs in Ray's log folder",
    )
