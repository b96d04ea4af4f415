"""Give an image to every node: there is no registry."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from k8s.local.machine import run_in
from k8s.local.plan import WORKERS, Worker
from raylm.errors import ConfigError

_IMPORT_S = 900.0


def import_archives(archives: list[Path]) -> list[str]:
    """Import OCI or Docker archives into all nodes; returns the names that all have.

    Raises:
        ConfigError: a file is not there.
        HostError: a node refuses one.
    """
    for path in archives:
        if not path.is_file():
            raise ConfigError(f"no such file: {path}", code="k8s-no-archive")
    with ThreadPoolExecutor(len(WORKERS)) as pool:
        found = list(pool.map(lambda worker: _import(worker, archives), WORKERS))
    return sorted(set.intersection(*map(set, found)))


def names(worker: Worker) -> list[str]:
    """Images that a node has."""
    found = run_in(worker, "ctr", "-n", "k8s.io", "images", "ls", "-q").split()
    return [name for name in found if not name.startswith("sha256:")]


def _import(worker: Worker, archives: list[Path]) -> list[str]:
    for path in archives:
        # By stdin, since the node does not see every folder of this machine.
        run_in(
            worker, "ctr", "-n", "k8s.io", "images", "import", "-",
            timeout_s=_IMPORT_S, file_in=path,
        )  # fmt: skip
    return names(worker)
