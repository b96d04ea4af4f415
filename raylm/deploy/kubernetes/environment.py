"""pod_env: the environment of Ray's processes in pods, which the charts are generated from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from raylm.deploy.environment import NODE_LOSS, QUIET, TRAIN, haproxy_env
from raylm.deploy.haproxy import MAX_FILES, max_connections
from raylm.deploy.ports import Ports

Kind = Literal["serve", "train"]
FOLDER = Path("/tmp/raylm")
"""What a pod writes beside Ray; short, for HAProxy's sockets."""
PORTS = Ports.at(20_000)
"""A pod has all ports to itself, so they are the same in each; Ray's own stay its defaults."""


def pod_env(kind: Kind) -> dict[str, str]:
    """Variables of every Ray container; those with a secret in them are set by KubeRay."""
    common = {
        "HOME": "/tmp",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Ray runs workers at nice 15: any other load on the node would starve replicas.
        "RAY_worker_niceness": "0",
        "RAY_START_HOOK": "raylm.deploy.hook.without_ray_client",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "110",
        "RAY_ROTATION_MAX_BYTES": str(64 * 2**20),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        **QUIET,
        **NODE_LOSS,
    }
    if kind == "train":
        return {**common, **TRAIN, "RAY_TRAIN_METRICS_ENABLED": "0"}
    return {
        **common,
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        **haproxy_env(PORTS, FOLDER, connections=max_connections(MAX_FILES)),
    }
