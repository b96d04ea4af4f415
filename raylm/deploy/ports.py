"""Ports: every port of a cluster is chosen before it starts, written down, and its own.

One block of consecutive numbers below the kernel's ephemeral range, so that no outgoing
connection takes one of them between the choice and the use.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from raylm.errors import HostError

BLOCK = 300
FIRST, LAST = 20_000, 31_999
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of one cluster, all on loopback; ranges are first and last."""

    gcs: int
    object_manager: int
    node_manager: int
    dashboard: int
    agent_http: int
    agent_grpc: int
    runtime_env_agent: int
    metrics: int
    dashboard_metrics: int
    haproxy_stats: int
    haproxy_metrics: int
    fallback_http: int
    fallback_grpc: int
    replica_http: tuple[int, int]
    """Of Serve's ingress replicas, behind HAProxy."""
    replica_grpc: tuple[int, int]
    workers: tuple[int, int]

    @classmethod
    def at(cls, base: int, dashboard: int = 0) -> Ports:
        """The layout of the block that starts at `base`."""
        b = base
        return cls(
            gcs=b, object_manager=b + 1, node_manager=b + 2, dashboard=dashboard or b + 3,
            agent_http=b + 4, agent_grpc=b + 5, runtime_env_agent=b + 6, metrics=b + 7,
            dashboard_metrics=b + 8, haproxy_stats=b + 9, haproxy_metrics=b + 10,
            fallback_http=b + 11, fallback_grpc=b + 12, replica_http=(b + 20, b + 99),
            replica_grpc=(b + 100, b + 139), workers=(b + 140, b + BLOCK - 1),
        )  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, int | list[int]]) -> Ports:
        """The inverse of `to_dict` after a trip through JSON."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, int | tuple[int, int]]:
        """Plain values for JSON."""
        return asdict(self)


def choose_ports(dashboard: int = 0) -> Ports:
    """A block in which nothing listens; `dashboard` is kept where it is given.

    Raises:
        HostError: the dashboard's port is taken, or no block is free.
    """
    if dashboard and not are_free([dashboard]):
        raise HostError(
            f"port {dashboard} is in use (cluster.dashboard_port)",
            code="port-in-use",
            hint="stop what listens there, or set cluster.dashboard_port to 0 for a free one",
        )
    starts = list(range(FIRST, LAST - BLOCK + 2, BLOCK))
    random.SystemRandom().shuffle(starts)
    for base in starts:
        if are_free(range(base, base + BLOCK)):
            return Ports.at(base, dashboard)
    raise HostError(
        f"no {BLOCK} consecutive ports are free between {FIRST} and {LAST}",
        code="ports-in-use",
        hint="`ss -ltn` shows who listens; `raylm down` ends this store's cluster",
    )


def are_free(ports: Iterable[int], host: str = LOOPBACK) -> bool:
    """Whether one could listen on all of these ports."""
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def is_listening(port: int, host: str = LOOPBACK, *, timeout_s: float = 0.5) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
