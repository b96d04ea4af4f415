"""The cable: a bridge in the control machine's namespace, to which the others are joined."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

from k8s.local import plan
from k8s.local.command import run, succeeds
from k8s.local.layout import STATE
from k8s.local.plan import BRIDGE, CONTROL, DEVICE, MACHINES, WORKERS, Machine
from raylm.errors import HostError

_NAMESPACES = Path("/run/netns")
_FIRST = STATE / "first-namespaces"
"""There when this machine had no named namespace before: `ip` makes a mount for the first."""


def make() -> None:
    """Make the namespaces and join them.

    Raises:
        HostError: the addresses are in use on this machine, or the kernel refuses.
    """
    _check_free()
    if not _NAMESPACES.is_mount():
        _FIRST.touch()
    for machine in plan.ALL:
        run("ip", "netns", "add", machine.namespace)
        _ip(machine, "link", "set", "lo", "up")
        _forward(machine)
    _ip(CONTROL, "link", "add", BRIDGE, "type", "bridge")
    _address(CONTROL, CONTROL.address, BRIDGE)
    for worker in WORKERS:
        _join(worker)
    run(
        "ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "host", "netns",
        CONTROL.namespace,
    )  # fmt: skip
    _ip(CONTROL, "link", "set", "host", "master", BRIDGE, "up")
    _address(None, plan.HOST_ADDRESS, DEVICE)
    for one in (None, *plan.ALL):
        for network, gateway in plan.routes(one):
            _ip(one, "route", "add", network, "via", gateway)


def remove() -> None:
    """Remove whatever there is of it; a namespace takes its devices, routes and tables along."""
    succeeds("ip", "link", "delete", DEVICE)
    for name in namespaces():
        run("ip", "netns", "delete", name)
    if _FIRST.exists() and _NAMESPACES.is_mount() and not any(_NAMESPACES.iterdir()):
        run("umount", _NAMESPACES)
        _NAMESPACES.rmdir()


def namespaces() -> list[str]:
    """Names of the namespaces that there are."""
    return sorted(path.name for path in _NAMESPACES.glob(f"{plan.PREFIX}*"))


def pids() -> list[int]:
    """Processes in them."""
    return [int(pid) for name in namespaces() for pid in run("ip", "netns", "pids", name).split()]


def has_device() -> bool:
    """Whether this machine's end of the cable is there."""
    return Path("/sys/class/net", DEVICE).exists()


def enter(machine: Machine) -> list[str]:
    """The words before a command that is to run in a machine's network, and only there."""
    # Not `ip netns exec`: that mounts another /sys, where the kubelet finds no control groups.
    return ["nsenter", f"--net={_NAMESPACES / machine.namespace}", "--"]


def _join(worker: Machine) -> None:
    _ip(
        CONTROL, "link", "add", worker.name, "type", "veth", "peer", "name", "eth0", "netns",
        worker.namespace,
    )  # fmt: skip
    _ip(CONTROL, "link", "set", worker.name, "master", BRIDGE, "up")
    _address(worker, worker.address, "eth0")


def _address(machine: Machine | None, address: str, device: str) -> None:
    _ip(machine, "address", "add", f"{address}/{MACHINES.prefixlen}", "dev", device)
    _ip(machine, "link", "set", device, "up")


def _forward(machine: Machine) -> None:
    run(*enter(machine), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def _ip(machine: Machine | None, *words: str) -> str:
    return run("ip", *(["-n", machine.namespace] if machine else []), *words)


def _check_free() -> None:
    for route in json.loads(run("ip", "-json", "-4", "route", "show", "table", "all")):
        text = route.get("dst", "default")
        if text == "default":
            continue
        taken = IPv4Network(text, strict=False)
        for wanted in (MACHINES, plan.PODS, plan.SERVICES):
            if wanted.overlaps(taken):
                raise HostError(
                    f"{wanted} is needed for the cluster, and {text} is in use on this machine",
                    code="k8s-network",
                )
