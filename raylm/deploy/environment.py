"""cluster_env: every environment variable that a cluster of raylm is started with.

Set before the head starts, because Ray reads most of them when it is imported, in every
process. Names as of Ray 2.60 (ray/serve/_private/constants.py, ray/_private/ray_constants.py).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from raylm.deploy.haproxy import (
    SCRIPT,
    STILL_S,
    haproxy_binary,
    max_connections,
    max_files,
    write_script,
)
from raylm.deploy.owned import MARK, marks
from raylm.deploy.ports import Ports

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
"""Nothing leaves the machine, and terminals stay raylm's own."""

TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # How often the controller asks its workers: its 2 s delay the end of a run, and what follows
    # the loss of a worker.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
"""Of drivers, which pass it on to the controllers of their trainings."""
NODE_LOSS = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
}
"""For heads of clusters of several nodes: one that answers nothing is dead after about 20 s. Ray's
own 65 s is time in which a training waits for a rank that is gone. A node whose processes die is
noticed at once, by the connections that close; so this matters for cut links and frozen machines.
Not on a cluster of one node, which has nobody to go on without it."""


def cluster_env(cluster_id: str, ports: Ports, *, temp_dir: Path, token: Path) -> dict[str, str]:
    """The environment of a cluster, and of clients that connect to it."""
    return {
        MARK: cluster_id,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Ray replaces 127.0.0.1 by the machine's outer address, and then listens on all
        # interfaces, unless it is told that this is no cluster of several machines.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **TRAIN,
        # Seven seconds of a core at every start of workers: this is one machine, which nobody
        # reclaims node by node, and raylm writes metrics of its own.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        # Ray runs workers at nice 15: any other load on the machine would starve replicas.
        "RAY_worker_niceness": "0",
        # `down` has drained Serve before it ends the head, which else waits half a minute.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        # A frozen replica is killed, and its place is free; else Serve waits a minute for it to
        # end by itself. The gateways have gone on without it long ago.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # Its minute is too short where other work keeps the cores busy.
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "110",
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "RAY_ROTATION_MAX_BYTES": str(64 * 2**20),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        **({} if has_gpu() else {"DS_ACCELERATOR": "cpu"}),
        **QUIET,
        **_serve_env(ports, temp_dir),
    }


def _serve_env(ports: Ports, temp_dir: Path) -> dict[str, str]:
    if haproxy_binary() is None:
        return {}
    return haproxy_env(ports, temp_dir, connections=max_connections(max_files()))


def haproxy_env(ports: Ports, temp_dir: Path, *, connections: int) -> dict[str, str]:
    """What makes Serve put HAProxy in front, with raylm's script for the binary in `temp_dir`."""
    folder = temp_dir / "ha"
    low, high = ports.replica_http
    low_grpc, high_grpc = ports.replica_grpc
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # With the default of 5 s, Serve kills its own proxy while the machine is busy.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(temp_dir / SCRIPT),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.haproxy_stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.haproxy_metrics),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_MAXCONN": str(connections),
        # Streams send a comment every 15 s, so the default of an hour is for nobody's good.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(STILL_S),
        # Workers of before a reload end then, answers or not; requests may take 300 s.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "330",
        # A gateway that ends stays reachable for so long, until HAProxy has left it out;
        # the default of 30 s is for load balancers that look rarely.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(low),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(high),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(low_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(high_grpc),
    }


def prepare_temp_dir(temp_dir: Path, ports: Ports) -> None:
    """Make a cluster's temporary folder, for its owner alone, with what the environment names."""
    temp_dir.mkdir(mode=0o700)
    (temp_dir / "ha").mkdir(mode=0o700)
    binary = haproxy_binary()
    if binary is not None:
        write_script(temp_dir, ports, binary)


def temp_dir_for(cluster_id: str) -> Path:
    """A short path: HAProxy allows its sockets 97 bytes, and Ray puts a node id of 56 in them."""
    return Path(f"/tmp/raylm-{cluster_id}")


def ray_dir(temp_dir: Path) -> Path:
    """Ray's part of a cluster's temporary folder: Ray opens its own to everybody."""
    return temp_dir / "r"


def keep_only_logs(temp_dir: Path) -> None:
    """Remove all but Ray's logs, which error messages name, from an ended cluster's folder."""
    shutil.rmtree(temp_dir / "ha", ignore_errors=True)
    for session in ray_dir(temp_dir).glob("session_*"):
        for path in () if session.is_symlink() else session.iterdir():
            if path.name != "logs" and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


def sweep_temp_dirs() -> None:
    """Remove what clusters left whose every process is gone (kill -9, a reboot).

    Their logs stay for a day.
    """
    alive = marks(MARK)
    for path in Path("/tmp").glob("raylm-" + "[0-9a-f]" * 8):
        with suppress(OSError):
            stat = path.lstat()
            age_s = time.time() - stat.st_mtime
            # The young may be about to start their first process.
            if stat.st_uid != os.getuid() or path.name[6:] in alive or age_s < 300:
                continue
            keep_only_logs(path)
            if age_s > 86_400:
                shutil.rmtree(path, ignore_errors=True)


def has_gpu() -> bool:
    """Whether NVIDIA's driver is here; asks neither torch nor Ray."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def base_env() -> dict[str, str]:
    """This process's environment without what would point Ray to another cluster."""
    foreign = ("RAY_ADDRESS", "RAY_JOB", "RAY_AUTH", "RAYLM_CLUSTER")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    # `ray` starts helpers by name.
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return kept
