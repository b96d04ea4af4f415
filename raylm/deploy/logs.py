"""Logs: where the parts of a store's cluster write, and the last lines of each."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from raylm.deploy.record import read_record
from raylm.errors import ConfigError, nearest
from raylm.store import Store

SOURCES: dict[str, tuple[str, ...]] = {
    "ray": ("raylet.*", "gcs_server.*", "ray_process_exit.log", "monitor.log"),
    "serve": ("serve/*.log",),
    "gateway": ("serve/*[gG]ateway*.log", "serve/*haproxy*", "serve/proxy*.log"),
    "engine": ("serve/replica_*[eE]ngine*.log",),
    "train": ("train/*.log",),
    "workers": ("worker-*.out", "worker-*.err", "python-core-worker-*.log"),
}
"""What can be asked for, as patterns in Ray's folder of logs; `head` is `ray start` itself."""


def find_logs(store: Store, source: str | None = None) -> list[Path]:
    """The logs that are not empty, the last written last.

    Raises:
        ConfigError: there is no such source.
    """
    names = ["head", *SOURCES]
    if source is not None and source not in names:
        close = nearest(source, names)
        raise ConfigError(
            f"unknown log {source!r}; known: {', '.join(names)}",
            code="unknown-log",
            hint=f"did you mean {close!r}?" if close else None,
        )
    found: set[Path] = set()
    if source in (None, "head"):
        found.add(store.root / "cluster" / "head.log")
    info = read_record(store)
    if info is not None:
        for name, patterns in SOURCES.items():
            if source in (None, name):
                found.update(p for pattern in patterns for p in info.logs_dir.glob(pattern))
    with_text = [p for p in found if p.is_file() and p.stat().st_size]
    return sorted(with_text, key=lambda p: (p.stat().st_mtime, p.name))


def tail(path: Path, num_lines: int) -> list[str]:
    """The last lines of a log; at most its last MiB is read."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 2**20))
        lines = deque(file.read().decode("utf-8", "replace").splitlines(), maxlen=num_lines)
    return list(lines)
