"""ClusterInfo: what `<store>/cluster/cluster.json` says of the cluster of a store.

<store>/cluster/        mode 0700
    cluster.json        0600, written when the cluster answers, removed when it is down
    token               0600, what a client must show; stays
    head.log            what `ray start` printed
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylm.artifact import disk_errors, write_atomic
from raylm.deploy.environment import ray_dir
from raylm.deploy.ports import Ports, is_listening
from raylm.processes import is_same
from raylm.store import Store


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """A cluster that was started for a store."""

    id: str
    address: str
    """`host:port`, for `ray.init`."""
    ports: Ports
    temp_dir: Path
    """Of mode 0700; Ray's session, sockets and logs are in it."""
    pid: int
    """The `ray start` process, leader of its session."""
    create_time: float
    """Of that process: tells it from a later one with its number."""
    started: str
    """UTC, ISO 8601."""
    num_cpus: int
    env: dict[str, str]
    """What a client sets before it imports Ray; names the token's file, not the token."""

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard and jobs API, on loopback."""
        return f"http://127.0.0.1:{self.ports.dashboard}"

    @property
    def logs_dir(self) -> Path:
        """Ray's own logs."""
        return ray_dir(self.temp_dir) / "session_latest" / "logs"

    @property
    def is_alive(self) -> bool:
        """Whether the head process lives and Ray's control service answers."""
        return is_same(self.pid, self.create_time) and is_listening(self.ports.gcs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "temp_dir": str(self.temp_dir)}


def cluster_dir(store: Store) -> Path:
    """`<store>/cluster`, readable by its owner alone."""
    folder = store.root / "cluster"
    with disk_errors(store.root):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    return folder


def record_path(store: Store) -> Path:
    """Where the record lies."""
    return store.root / "cluster" / "cluster.json"


def read_record(store: Store) -> ClusterInfo | None:
    """The recorded cluster, alive or not; None if there is no readable record."""
    try:
        raw = json.loads(record_path(store).read_text(encoding="utf-8"))
        raw["ports"] = Ports.from_dict(raw["ports"])
        raw["temp_dir"] = Path(raw["temp_dir"])
        return ClusterInfo(**raw)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def write_record(store: Store, info: ClusterInfo) -> None:
    """Record the cluster, readable by its owner alone."""
    write_atomic(record_path(store), json.dumps(info.to_dict(), indent=2) + "\n", mode=0o600)


def store_token(store: Store) -> Path:
    """The file with the secret of this store's clusters, made when it is first needed.

    256 bits, readable by its owner alone from the first moment. It outlives the clusters, as
    Ray reads it once per process.
    """
    path = cluster_dir(store) / "token"
    with store.lock("cluster-token"):
        if not path.exists():
            write_atomic(path, os.urandom(32).hex(), mode=0o600)
    return path
