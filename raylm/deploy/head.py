"""The head process: `ray start --head --block`, detached, with every port and path given."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from raylm.config.cluster import ClusterConfig
from raylm.deploy.environment import ray_dir
from raylm.deploy.haproxy import max_files
from raylm.deploy.ports import LOOPBACK, Ports, is_listening
from raylm.errors import HostError
from raylm.progress import Report, Tick

START_ATTEMPTS = 2
_SLOW_DASHBOARD = re.compile(r"Failed to start the dashboard *$")
"""With a return code it has ended, and not just taken its time."""
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception)\b.*:")


def head_command(
    config: ClusterConfig, ports: Ports, temp_dir: Path, host: str = LOOPBACK
) -> list[str]:
    """The command line of the head."""
    options: dict[str, object] = {
        "port": ports.gcs,
        "include-dashboard": "true",
        "dashboard-host": host,
        "dashboard-port": ports.dashboard,
        **_node_options(config, ports, temp_dir, host),
    }
    # The autoscaler's monitor (`--no-monitor`) has nothing to do on a machine of its own.
    return _start("--head", "--no-monitor", "--disable-usage-stats", options=options)


def worker_command(
    config: ClusterConfig, ports: Ports, temp_dir: Path, *, address: str, host: str
) -> list[str]:
    """The command line of a further node of the cluster whose head is at `address`."""
    options = {"address": address, **_node_options(config, ports, temp_dir, host)}
    return _start("--disable-usage-stats", options=options)


def _node_options(
    config: ClusterConfig, ports: Ports, temp_dir: Path, host: str
) -> dict[str, object]:
    return {
        "node-ip-address": host,
        "object-manager-port": ports.object_manager,
        "node-manager-port": ports.node_manager,
        "min-worker-port": ports.workers[0],
        "max-worker-port": ports.workers[1],
        "dashboard-agent-listen-port": ports.agent_http,
        "dashboard-agent-grpc-port": ports.agent_grpc,
        "runtime-env-agent-port": ports.runtime_env_agent,
        "metrics-export-port": ports.metrics,
        "temp-dir": ray_dir(temp_dir),
        "object-store-memory": config.object_store_bytes,
        "num-cpus": num_cpus(config),
        # It carries workers' output to drivers, which raylm has them not show.
        "include-log-monitor": "false",
        "log-color": "false",
    }


def _start(*flags: str, options: Mapping[str, object]) -> list[str]:
    given = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags, *given]


def num_cpus(config: ClusterConfig) -> int:
    """CPUs that the cluster offers: as configured, or those this process may use."""
    return config.num_cpus or len(os.sched_getaffinity(0))


def spawn(
    command: list[str], env: Mapping[str, str], log: Path, cwd: Path
) -> subprocess.Popen[bytes]:
    """Start the head in a session of its own, so that no Ctrl-C reaches it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
        )
    finally:
        os.close(descriptor)
    with suppress(OSError):  # it has ended
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        if 0 <= soft < max_files():
            # Ray's processes and HAProxy inherit it; a terminal's 1024 are few for an endpoint.
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (max_files(), hard))
    return process


def wait_until_up(
    process: subprocess.Popen[bytes],
    ports: Ports,
    temp_dir: Path,
    *,
    log: Path,
    timeout_s: float,
    report: Report,
) -> None:
    """Wait until Ray answers on its ports.

    Raises:
        HostError: the head ended, or did not answer in time; with the essence of its log.
    """
    begun = last = time.monotonic()
    # Ray writes this file when all of its processes have registered.
    ready = ray_dir(temp_dir) / "ray_current_cluster"
    while True:
        if ready.exists() and is_listening(ports.gcs) and is_listening(ports.node_manager):
            return
        now = time.monotonic()
        if process.poll() is not None:
            raise _failed(f"Ray ended at its start with code {process.returncode}", log)
        if now - begun > timeout_s:
            raise _failed(f"Ray did not answer within {timeout_s:.0f} s", log)
        if now - last >= 1:
            last = now
            report(Tick("cluster", f"starting Ray ({now - begun:.0f} s)"))
        time.sleep(0.1)


def _failed(what: str, log: Path) -> HostError:
    cause = last_cause(log)
    hint = f"`raylm doctor` looks for the cause; the log is {log}"
    return start_error(f"{what}: {cause}" if cause else what, hint)


def start_error(message: str, hint: str) -> HostError:
    """The error of a start; `cluster-start-slow` if it may well succeed the next time.

    Ray gives its own parts 30 s, fixed in its code, which a machine under load does not keep.
    """
    if "timed out during startup" in message or "Deadline Exceeded" in message:
        load = f"load {os.getloadavg()[0]:.0f} on {len(os.sched_getaffinity(0))} cores"
        return HostError(
            f"Ray's parts did not find each other in time; the machine is busy ({load})",
            code="cluster-start-slow",
            hint=f"try again when it is less so; {hint}",
        )
    return HostError(message, code="cluster-start-failed", hint=hint)


def last_cause(log: Path) -> str:
    """The line of a log that says most: the last exception, else the last error, else the end."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    lines = [line for line in lines if line]
    if any(_SLOW_DASHBOARD.search(line) for line in lines):
        return "Ray's dashboard timed out during startup"
    exceptions = [line for line in lines if _EXCEPTION.match(line)]
    errors = [line for line in lines if "error" in line.lower()]
    return (exceptions or errors or lines or [""])[-1][:300]
