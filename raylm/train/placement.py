"""How many workers a cluster holds at this moment; pure, but for what asks Ray."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress

from raylm.config.train import TrainConfig
from raylm.errors import HostError

Resources = Mapping[str, float]
_SLACK = 1e-9
_ANSWER_S = 2.0


def draining_nodes() -> dict[str, float]:
    """Nodes that were told to go (a preemption, a drain), and when they must be gone.

    Returns:
        Ray's node ids, and Unix times; 0 is no deadline.
    """
    from ray._private.state import state

    # Where Ray Train's own watcher looks; there is no public way from outside a training.
    return {node: deadline_ms / 1e3 for node, deadline_ms in state.get_draining_nodes().items()}


def answering_nodes() -> list[Resources]:
    """The resources of each node that lives and is to stay, of which this is seen.

    For some seconds (15 by Ray's own settings) after a node was lost Ray counts it as alive,
    and workers that were placed on it would be waited for in vain.
    """
    import ray

    found, leaving = [], draining_nodes()
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] not in leaving:
            place = node["NodeManagerAddress"], node["NodeManagerPort"]
            with suppress(OSError), socket.create_connection(place, timeout=_ANSWER_S):
                found.append(node["Resources"])
    return found


def held_places() -> frozenset[str]:
    """Ids of the placement groups that this driver and its actors have made and not removed."""
    import ray
    from ray.util import placement_group_table

    job: str = ray.get_runtime_context().get_job_id()
    # An id ends with that of its job (Ray's id specification).
    return frozenset(
        name
        for name, group in placement_group_table().items()
        if name.endswith(job) and group["state"] != "REMOVED"
    )


def free_places(kept: frozenset[str]) -> None:
    """Remove all but some of them.

    Ray does so when the driver is gone too; until then those of a controller that was killed
    would keep its workers' place from the next ones.
    """
    import ray
    from ray.util import remove_placement_group
    from ray.util.placement_group import PlacementGroup

    for name in held_places() - kept:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


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
