"""The two folders: what a cluster is made of while it is up, and what outlives it."""

from __future__ import annotations

import os
from pathlib import Path

from k8s.local.plan import Machine

STATE = Path("/var/lib/raylm-k8s")
"""One folder per machine, logs, pids, keys and the kubeconfig; only root may look into it."""
KUBECONFIG = STATE / "kubeconfig"
KEYS = STATE / "keys"
LOGS = STATE / "logs"
PIDS = STATE / "pids"
COMPLETE = STATE / "complete"
"""Written last by `up`."""

INSIDE = Path("/var/lib/raylm")
"""Where a machine finds its own configuration; /var/lib, /var/log and /run are its own."""
BINARIES_INSIDE = INSIDE / "bin"


def cache() -> Path:
    """What was built: binaries and images, by version. May be removed at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "raylm" / "k8s"


def machine_folder(machine: Machine) -> Path:
    """What a machine sees as /var/lib (`lib`) and /var/log (`log`)."""
    return STATE / "machines" / machine.name


def config_folder(machine: Machine) -> Path:
    """What a machine sees as `INSIDE`."""
    return machine_folder(machine) / "lib" / "raylm"
