"""How much memory a worker has: its share of a node, or its GPU."""

from __future__ import annotations

import math
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
from raylm.train.placement import room as places

# Ray ends workers when a node's memory is fuller than this (RAY_memory_usage_threshold).
_RAY_LIMIT = 0.95
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Node:
    """What a machine has for workers."""

    num_cpus: float
    memory_bytes: int
    """Free for them, with what Ray never lets them use taken off."""
    gpu_bytes: tuple[int, ...] = ()
    """Free memory of each GPU."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why workers cannot be placed."""

    why: str
    is_certain: bool
    """False: what they need is not seen from here, and may be where they run."""


@dataclass(frozen=True, slots=True)
class Room:
    """The nodes that workers are put on."""

    nodes: tuple[Node, ...]

    def worker_bytes(self, config: TrainConfig) -> int:
        """The least that one of the workers has; 0 if they cannot all be placed.

        On GPUs it is the smallest GPU's memory, or the share of it that `gpus_per_worker` says.
        """
        placed = self._placed(config)
        if not config.gpus_per_worker or not placed:
            return self.host_bytes(config)
        gpus = sorted((free for node in self.nodes for free in node.gpu_bytes), reverse=True)
        count = sum(here for _, here in placed)
        taken = max(1, math.ceil(count * config.gpus_per_worker - _SLACK))
        return int(gpus[taken - 1] * min(1.0, config.gpus_per_worker))

    def host_bytes(self, config: TrainConfig) -> int:
        """The least of its node's memory that one of the workers has; 0 if they cannot all be
        placed."""
        return min((node.memory_bytes // here for node, here in self._placed(config)), default=0)

    def shortage(self, config: TrainConfig) -> Shortage | None:
        """Why the least number of workers cannot be placed; None if it can."""
        if self._placed(config):
            return None
        if config.gpus_per_worker and not any(node.gpu_bytes for node in self.nodes):
            return Shortage("GPUs cannot be seen from here", is_certain=False)
        aside, count = config.validate_aside, config.min_workers
        wanted = {
            "CPU": (count * config.cpus_per_worker + (aside.num_cpus if aside else 0.0),
                    sum(node.num_cpus for node in self.nodes)),
            "GPU": (count * config.gpus_per_worker + (aside.num_gpus if aside else 0.0),
                    float(sum(len(node.gpu_bytes) for node in self.nodes))),
        }  # fmt: skip
        for name, (most, here) in wanted.items():
            if most > here + _SLACK:
                text = f"cannot be placed: {most:g} {name}s wanted, {here:g} here"
                return Shortage(text, is_certain=True)
        text = f"cannot be placed: {count} workers wanted, of each node's share there is room for "
        return Shortage(text + f"{sum(self._most(config))}", is_certain=True)

    def _most(self, config: TrainConfig) -> list[int]:
        """Workers that each node holds."""
        if config.is_alone:
            return [int(not config.gpus_per_worker or bool(n.gpu_bytes)) for n in self.nodes]
        nodes = [{"CPU": node.num_cpus, "GPU": float(len(node.gpu_bytes))} for node in self.nodes]
        if config.validate_aside is not None:
            largest = max(nodes, key=lambda node: node["CPU"])
            largest["CPU"] -= config.validate_aside.num_cpus
            largest = max(nodes, key=lambda node: node["GPU"])
            largest["GPU"] -= config.validate_aside.num_gpus
        return [max(0, places((node,), config)) for node in nodes]

    def _placed(self, config: TrainConfig) -> list[tuple[Node, int]]:
        """How many workers are on which node; empty if not even the least number fits.

        Ray fills one node before it takes the next; the largest first is the worst case.
        """
        found, left = [], config.max_workers
        nodes = zip(self.nodes, self._most(config), strict=True)
        for node, most in sorted(nodes, key=lambda pair: -pair[1]):
            here = min(left, most)
            if here:
                found.append((node, here))
            left -= here
        return found if config.max_workers - left >= config.min_workers else []


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
