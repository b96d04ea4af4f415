"""Network: a namespace for each node, all joined by a bridge in one more namespace.

    this machine  rl<id> 10.x.y.1 ---- bridge in raylm-<id>-sw
                                          |-- eth0 10.x.y.10 in raylm-<id>-n0
                                          `-- eth0 10.x.y.11 in raylm-<id>-n1

Deleting the namespaces deletes all that is in them, so nothing of a cluster can be left that
its namespaces' names do not tell. No packet leaves the machine: nothing is forwarded.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from raylm.errors import HostError

_NAMESPACES = Path("/run/netns")
_PREFIX = "raylm-"
_TRY = "try"
"""Where a cluster's id stands in names, in those of namespaces that are only tried."""
_COMMAND_S = 30.0
FIRST_HOST = 10
NO_RIGHTS = (
    "a network for each node needs root, iproute2, nsenter, and the kernel's bridge and veth; "
    "without, nodes share loopback (`up --loopback`, `isolate=False`)"
)


def may_isolate() -> bool:
    """Whether this process may make network namespaces: it is tried."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("nsenter")):
        return False
    name = f"{_PREFIX}{_TRY}-{os.getpid()}"
    made = _ip("netns", "add", name, check=False)
    # A switch needs these two kinds of device.
    works = made and all(
        _ip("-n", name, "link", "add", f"t{kind[0]}", "type", kind, check=False)
        for kind in ("bridge", "veth")
    )
    _ip("netns", "delete", name, check=False)
    return works


def node_namespace(cluster_id: str, index: int) -> str:
    """The namespace of a node."""
    return f"{_PREFIX}{cluster_id}-n{index}"


def make_switch(cluster_id: str) -> str:
    """Make the bridge and this machine's end of it; returns `10.x.y`, a network not in use."""
    network, switch = _free_network(), f"{_PREFIX}{cluster_id}-sw"
    _ip("netns", "add", switch)
    _ip("-n", switch, "link", "add", "br0", "type", "bridge")
    _ip("-n", switch, "link", "set", "br0", "up")
    own = _own_link(cluster_id)
    _ip("link", "add", own, "type", "veth", "peer", "name", "up0", "netns", switch)
    _ip("-n", switch, "link", "set", "up0", "master", "br0", "up")
    _ip("address", "add", f"{network}.1/24", "dev", own)
    _ip("link", "set", own, "up")
    return network


def plug_in(cluster_id: str, index: int, address: str) -> None:
    """Make a node's namespace and join it to the bridge."""
    switch, node = f"{_PREFIX}{cluster_id}-sw", node_namespace(cluster_id, index)
    gateway = f"{address.rpartition('.')[0]}.1"
    _ip("netns", "add", node)
    _ip("-n", node, "link", "set", "lo", "up")
    _ip("-n", switch, "link", "add", f"n{index}", "type", "veth", "peer", "name", "eth0",
        "netns", node)  # fmt: skip
    _ip("-n", switch, "link", "set", f"n{index}", "master", "br0", "up")
    _ip("-n", node, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", node, "link", "set", "eth0", "up")
    # Ray finds a node's own address by its default route.
    _ip("-n", node, "route", "add", "default", "via", gateway)


def unplug(cluster_id: str, index: int) -> None:
    """Remove a node's namespace, and with it its end of the link."""
    _ip("netns", "delete", node_namespace(cluster_id, index), check=False)


def set_link(cluster_id: str, index: int, *, up: bool) -> None:
    """Cut a node's link at the bridge, or mend it: packets are lost, no connection is closed."""
    _ip("-n", f"{_PREFIX}{cluster_id}-sw", "link", "set", f"n{index}", "up" if up else "down")


def inside(namespace: str, command: list[str]) -> list[str]:
    """The command that runs another in a namespace, as the same process."""
    # Not `ip netns exec`: that mounts another /sys, where cgroups are not found.
    return ["nsenter", f"--net={_NAMESPACES / namespace}", *command]


def pids_in(namespace: str) -> list[int]:
    """Processes in a namespace."""
    return [int(word) for word in _run("netns", "pids", namespace).stdout.split()]


def remove(cluster_id: str) -> None:
    """Remove whatever there is of a cluster's network."""
    _ip("link", "delete", _own_link(cluster_id), check=False)
    for name in namespaces(cluster_id):
        _ip("netns", "delete", name, check=False)


def namespaces(cluster_id: str = "") -> list[str]:
    """Names of a cluster's namespaces, or of those of all clusters."""
    return sorted(name for name, owner in _named() if owner == cluster_id or not cluster_id)


def cluster_ids() -> set[str]:
    """Clusters that have a namespace."""
    return {owner for _, owner in _named()}


def sweep_tried() -> None:
    """Remove namespaces whose `may_isolate` was killed."""
    for path in _NAMESPACES.glob(f"{_PREFIX}{_TRY}-*") if _NAMESPACES.is_dir() else ():
        if not Path("/proc", path.name.rpartition("-")[2]).exists():
            _ip("netns", "delete", path.name, check=False)


def _named() -> Iterator[tuple[str, str]]:
    for path in _NAMESPACES.glob(f"{_PREFIX}*-*") if _NAMESPACES.is_dir() else ():
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        if len(owner) == 8:
            yield path.name, owner


def _own_link(cluster_id: str) -> str:
    # Names of devices have 15 characters at most.
    return f"rl{cluster_id}"


def _free_network() -> str:
    routes = _run("-4", "route", "show", "table", "all").stdout
    used = set(re.findall(r"\b10\.\d+\.\d+(?=\.)", routes))
    # From 10.231 on is k8s/local's.
    free = sorted({f"10.{a}.{b}" for a in range(200, 230) for b in range(256)} - used)
    if not free:
        raise HostError("no network 10.200.0 to 10.229.255 is free", code="nodes-network")
    return random.SystemRandom().choice(free)


def _ip(*words: str, check: bool = True) -> bool:
    done = _run(*words)
    if check and done.returncode:
        raise HostError(
            f"ip {' '.join(words)}: {done.stderr.strip()}", code="nodes-network", hint=NO_RIGHTS
        )
    return done.returncode == 0


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["ip", *words], capture_output=True, text=True, check=False, timeout=_COMMAND_S
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise HostError(f"ip {' '.join(words)}: {error}", code="nodes-network") from error
