"""Names and addresses of the cluster: fixed, so that what is left of one can be found again.

    this machine  rlk8s0  10.231.0.254 --- bridge in raylm-k8s-control  10.231.0.1   (API server)
                                              |--- eth0 in raylm-k8s-node-1  10.231.0.11
                                              `--- eth0 in raylm-k8s-node-2  10.231.0.12

Pods have addresses of their node's part of 10.232.0.0/16, Services of 10.233.0.0/16.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

PREFIX = "raylm-k8s-"
"""What the name of every network namespace of the cluster begins with."""
CGROUP = "raylm-k8s"
"""Pods' control groups are below this one."""
DEVICE = "rlk8s0"
"""This machine's end of the cable to the cluster."""
BRIDGE = "br0"

MACHINES = IPv4Network("10.231.0.0/24")
PODS = IPv4Network("10.232.0.0/16")
SERVICES = IPv4Network("10.233.0.0/16")
HOST_ADDRESS = "10.231.0.254"
API_SERVICE = "10.233.0.1"
DNS_SERVICE = "10.233.0.10"
DOMAIN = "cluster.local"
API_PORT = 6443


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the cluster, which is a set of namespaces on this one."""

    name: str
    address: str

    @property
    def namespace(self) -> str:
        """The name of its network namespace."""
        return f"{PREFIX}{self.name}"


@dataclass(frozen=True, slots=True)
class Worker(Machine):
    """A machine that runs pods, with the network that its pods have addresses of."""

    pods: IPv4Network


CONTROL = Machine("control", "10.231.0.1")
WORKERS = tuple(
    Worker(f"node-{index}", f"10.231.0.{10 + index}", IPv4Network(f"10.232.{index}.0/24"))
    for index in (1, 2)
)
ALL = (CONTROL, *WORKERS)
API_URL = f"https://{CONTROL.address}:{API_PORT}"


def routes(machine: Machine | None) -> list[tuple[str, str]]:
    """Networks a machine reaches through another, as (network, gateway); None is this machine.

    Pods and Services can be reached from this machine too, which is outside of the cluster.
    """
    found = [(str(worker.pods), worker.address) for worker in WORKERS if worker != machine]
    if machine is None:
        found.append((str(SERVICES), WORKERS[0].address))
    if isinstance(machine, Worker):
        found.append(("default", CONTROL.address))
    return found
