"""How many workers a cluster holds at this moment; pure, but for `alive_nodes`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from raylm.config.train import TrainConfig
from raylm.errors import HostError

Resources = Mapping[str, float]
_SLACK = 1e-9


def alive_nodes() -> list[Resources]:
    """The resources of each node that lives, as Ray counts them."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(nodes: Sequence[Resources], config: TrainConfig) -> int:
    """Workers that fit on some nodes, each whole on one of them."""
    wanted = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return sum(
        min(
            math.floor(node.get(name, 0.0) / amount + _SLACK)
            for name, amount in wanted.items()
            if amount
        )
        for node in nodes
    )


def choose_workers(nodes: Sequence[Resources], config: TrainConfig) -> int:
    """How many workers to start: as many as fit, within what the config allows.

    Raises:
        HostError: fewer fit than the config's least.
    """
    fits = room(nodes, config)
    # More than one sample each there is nothing to share out.
    most = min(config.max_workers, config.global_batch)
    if fits >= config.min_workers:
        return min(fits, most)
    short = next(
        (
            name
            for name, amount in (("CPU", config.cpus_per_worker), ("GPU", config.gpus_per_worker))
            if config.min_workers * amount > sum(n.get(name, 0.0) for n in nodes) + _SLACK
        ),
        None,
    )
    if short is None:
        raise HostError(
            f"{config.min_workers} workers do not fit: of the nodes' free shares there is room "
            f"for {fits}",
            code="cluster-too-small",
            hint="lower train.workers or train.cpus_per_worker, or add nodes",
        )
    wanted = config.min_workers * (
        config.cpus_per_worker if short == "CPU" else config.gpus_per_worker
    )
    raise HostError(
        f"{config.min_workers} workers need {wanted:g} {short}s, the cluster has "
        f"{sum(n.get(short, 0.0) for n in nodes):g}",
        code="cluster-too-small",
        hint=f"lower train.workers or train.{short.lower()}s_per_worker, or add nodes",
    )
