"""Room: whether the cluster can hold a deployment, and how many threads a replica gets."""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.errors import HostError
from raylm.serve.catalog import ServedModel

ROOM_S = 10.0
"""How long other work may take to give its CPUs back."""


def wait_room(models: Sequence[ServedModel], config: ServeConfig, *, is_running: bool) -> None:
    """See that the CPUs suffice, and give other work a moment to end.

    Raises:
        HostError: they do not, with both figures.
    """
    largest = max(cpus_by_node(), default=0.0)
    if config.cpus_per_replica > largest:
        raise HostError(
            f"serve.cpus_per_replica={config.cpus_per_replica:g}, and the largest node of the "
            f"cluster has {largest:g}",
            code="not-enough-cpus",
        )
    check_room(models, config, ray.cluster_resources().get("CPU", 0.0))
    if is_running:
        return  # what is there now makes room for what comes
    deadline_s = time.monotonic() + ROOM_S
    while True:
        # What has just ended is counted as free a little later.
        try:
            check_room(models, config, ray.available_resources().get("CPU", 0.0), "free now")
            return
        except HostError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.2)


def check_room(
    models: Sequence[ServedModel], config: ServeConfig, cluster_cpus: float, which: str = "in all"
) -> None:
    """See that the CPUs suffice.

    Raises:
        HostError: they do not, with both figures.
    """
    engines = len(models) * config.min_replicas * config.cpus_per_replica
    batches = 0.0 if config.batches is None else config.batches.num_cpus
    needed = engines + config.gateways * config.cpus_per_gateway + batches
    if needed > cluster_cpus + 1e-6:
        batches_text = f" + {batches:g} for batches" if batches else ""
        raise HostError(
            f"serving needs {needed:g} CPUs ({len(models)} models x {config.min_replicas} replicas "
            f"x {config.cpus_per_replica:g} + {config.gateways} gateways x "
            f"{config.cpus_per_gateway:g}{batches_text}), and the cluster has "
            f"{cluster_cpus:g} {which}",
            code="not-enough-cpus",
            hint="lower serve.replicas or serve.cpus_per_replica, or raise cluster.num_cpus",
        )


def num_threads(
    models: Sequence[ServedModel],
    config: ServeConfig,
    engine: EngineConfig,
    cpus_by_node: Sequence[float],
) -> int:
    """Threads of one engine replica: as configured, or its whole CPUs, or its share of all."""
    if engine.num_threads is not None:
        return engine.num_threads
    if config.cpus_per_replica >= 1:
        return int(config.cpus_per_replica)
    share = sum(cpus_by_node) / (len(models) * config.max_replicas)
    return max(1, int(min(share, max(cpus_by_node, default=1.0))))


def cpus_by_node() -> list[float]:
    """CPUs of every node that is up."""
    return [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]
