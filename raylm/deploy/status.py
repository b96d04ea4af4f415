"""status: what runs on a store's cluster, as far as can be seen from here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from raylm.artifact import write_atomic
from raylm.config.cluster import ClusterConfig
from raylm.deploy import owned
from raylm.deploy.connect import connect
from raylm.deploy.record import cluster_dir, read_record
from raylm.progress import Report, silent
from raylm.store import Store


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """One deployment of Ray Serve, and how many of its replicas are in which state."""

    application: str
    name: str
    state: str
    replicas: Mapping[str, int]
    message: str = ""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A store's cluster."""

    is_up: bool
    id: str | None = None
    address: str | None = None
    dashboard_url: str | None = None
    started: str | None = None
    num_processes: int = 0
    cpus: float = 0.0
    cpus_free: float = 0.0
    deployments: tuple[DeploymentStatus, ...] = ()
    endpoint: Mapping[str, Any] | None = None
    """What `raylm serve` deployed: url, models."""
    warnings: tuple[str, ...] = ()
    """What there is to say of the models that are served."""
    env: Mapping[str, str] = field(default_factory=dict)
    """What a client of its own sets before it imports Ray."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def status(store: Store, *, report: Report = silent) -> ClusterStatus:
    """Look at the store's cluster.

    Raises:
        HostError: it is up but cannot be asked.
    """
    info = read_record(store)
    if info is None or not info.is_alive:
        return ClusterStatus(is_up=False)
    with connect(store, ClusterConfig(), report):
        import ray

        total, free = ray.cluster_resources(), ray.available_resources()
        deployments = _deployments()
        warnings = _warnings(deployments)
    return ClusterStatus(
        is_up=True,
        id=info.id,
        address=info.address,
        dashboard_url=info.dashboard_url,
        started=info.started,
        num_processes=len(owned.marked(owned.MARK, info.id)),
        cpus=total.get("CPU", 0.0),
        cpus_free=free.get("CPU", 0.0),
        deployments=deployments,
        endpoint=read_endpoint(store) if deployments else None,
        warnings=warnings,
        env=info.env,
    )


def _warnings(deployments: tuple[DeploymentStatus, ...]) -> tuple[str, ...]:
    from raylm.serve.app import warnings
    from raylm.serve.build import APP

    return tuple(warnings()) if any(each.application == APP for each in deployments) else ()


def write_endpoint(store: Store, values: Mapping[str, Any]) -> None:
    """Record what is served on the store's cluster: at least `url` and `models`."""
    path = cluster_dir(store) / "endpoint.json"
    write_atomic(path, json.dumps(dict(values), indent=2) + "\n", mode=0o600)


def read_endpoint(store: Store) -> dict[str, Any] | None:
    """The recorded endpoint, whether or not it still answers."""
    try:
        found = json.loads((store.root / "cluster" / "endpoint.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _deployments() -> tuple[DeploymentStatus, ...]:
    from ray import serve

    return tuple(
        DeploymentStatus(
            application=application,
            name=name,
            state=str(deployment.status.value),
            replicas={str(k): int(v) for k, v in deployment.replica_states.items() if v},
            message=deployment.message,
        )
        for application, found in serve.status().applications.items()
        for name, deployment in found.deployments.items()
    )
