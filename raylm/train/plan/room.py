"""How much memory a worker has: its share of a node, or its GPU."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from raylm.config.train import TrainConfig
from raylm.nvidia import query_gpus

# Ray ends workers when a node's memory is fuller than this (RAY_memory_usage_threshold).
_RAY_LIMIT = 0.95


@dataclass(frozen=True, slots=True)
class Node:
    """What a machine has for workers."""

    num_cpus: float
    memory_bytes: int
    """Free for them, with what Ray never lets them use taken off."""
    gpu_bytes: tuple[int, ...] = ()
    """Free memory of each GPU."""


@dataclass(frozen=True, slots=True)
class Room:
    """The nodes that workers are put on."""

    nodes: tuple[Node, ...]

    def worker_bytes(self, config: TrainConfig) -> int:
        """The least that one of the workers has; 0 if they cannot all be placed.

        Ray fills one node before it takes the next. On GPUs it is the smallest GPU's memory,
        or the share of it that `gpus_per_worker` says.
        """
        if config.gpus_per_worker:
            gpus = sorted((free for node in self.nodes for free in node.gpu_bytes), reverse=True)
            taken = max(1, round(config.max_workers * config.gpus_per_worker))
            if taken > len(gpus):
                return 0
            return int(gpus[taken - 1] * min(1.0, config.gpus_per_worker))
        least, left = 0, config.max_workers
        for node in sorted(self.nodes, key=lambda node: -node.num_cpus):
            here = min(left, int(node.num_cpus / config.cpus_per_worker + 1e-9))
            if here:
                share = node.memory_bytes // here
                least = min(least, share) if least else share
            left -= here
        return 0 if left > 0 else least


def this_node(num_cpus: float) -> Node:
    """This machine, or the container that this process is held in."""
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit, used = _cgroup()
    if limit is not None and limit < total:
        free, total = min(free, limit - used), limit
    return Node(num_cpus, max(0, int(free - (1 - _RAY_LIMIT) * total)), gpu_bytes())


def _cgroup(root: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """The memory limit of this process's control group, and what of it cannot be freed."""
    for limit, usage, statistics, name in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        with suppress(OSError, ValueError):
            most = int((root / limit).read_text())
            used = int((root / usage).read_text())
            lines = (line.split() for line in (root / statistics).read_text().splitlines())
            # Files that were read long ago are given up before anybody is killed.
            given_up = next((int(value) for key, value in lines if key == name), 0)
            return most, max(0, used - given_up)
    return None, 0


def gpu_bytes() -> tuple[int, ...]:
    """Free memory of each GPU of this machine; empty where there is none."""
    return tuple(free for _, free in gpus())


def gpus() -> tuple[tuple[str, int], ...]:
    """Name and free bytes of each GPU of this machine, as its driver tells."""
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        rows = [line.rpartition(",") for line in query_gpus("name,memory.free")]
        return tuple((name.strip(), int(free) * 2**20) for name, _, free in rows)
    return ()


def cluster_room(nodes: Sequence[dict[str, Any]]) -> Room:
    """The room of a connected cluster, from `ray.nodes()`.

    Where it is this machine alone, its memory is looked at; of others Ray tells what was free
    when it started there, less its object store. Their GPUs are taken to be like those here.
    """
    alive = [node["Resources"] for node in nodes if node.get("Alive")]
    hosts = {node.get("NodeManagerHostname") for node in nodes if node.get("Alive")}
    if len(alive) == 1 and hosts == {socket.gethostname()}:
        return Room((this_node(float(alive[0].get("CPU", 0))),))
    free = min(gpu_bytes(), default=0)
    return Room(
        tuple(
            Node(
                num_cpus=float(resources.get("CPU", 0)),
                memory_bytes=int(resources.get("memory", 0)),
                gpu_bytes=(free,) * int(resources.get("GPU", 0)),
            )
            for resources in alive
        )
    )
