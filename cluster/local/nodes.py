"""Nodes: several Ray nodes on this machine, each of which can be killed, frozen or cut off.

With the rights for it every node has a network namespace of its own, so that they have
addresses and ports as machines have them; else they share loopback with different ports.
All that is made carries the cluster's id.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.local import network
from raylm.artifact import write_atomic
from raylm.config.cluster import ClusterConfig
from raylm.deploy import head, owned
from raylm.deploy.environment import (
    NODE_LOSS,
    base_env,
    cluster_env,
    prepare_temp_dir,
    temp_dir_for,
)
from raylm.deploy.ports import LOOPBACK, Ports, choose_ports, is_listening
from raylm.errors import HostError
from raylm.processes import created, created_here, is_same

NODE_MARK = "RAYLM_NODE"
START_TIMEOUT_S = 300.0
KILL_TIMEOUT_S = 30.0
STATE = "nodes.json"
TIMES = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240", **NODE_LOSS}


@dataclass(frozen=True, slots=True)
class Node:
    """One Ray node; the first is the head."""

    index: int
    host: str
    ports: Ports
    namespace: str | None
    """None shares this machine's network."""


class Nodes:
    """The nodes of one cluster."""

    def __init__(
        self,
        cluster_id: str,
        *,
        num_cpus: int,
        head_cpus: int,
        ports: Ports,
        subnet: str | None,
        owner: tuple[int, float] | None,
    ) -> None:
        """`ports` are the head's; `subnet` is `10.x.y`, None for loopback; an `owner` (process,
        its start) takes all with it at its end, None leaves it to `remove`."""
        self.id = cluster_id
        self._head_ports = ports
        self.nodes: list[Node] = []
        self._num_cpus, self._head_cpus = num_cpus, head_cpus
        self._subnet, self._owner = subnet, owner
        self._folder = temp_dir_for(cluster_id)
        self._started: list[subprocess.Popen[bytes]] = []

    @classmethod
    def create(cls, *, num_cpus: int, isolate: bool, head_cpus: int | None = None) -> Nodes:
        """A cluster without a node yet, owned by this process.

        Args:
            num_cpus: that each node offers.
            isolate: a network for each node; else they share loopback.
            head_cpus: that the head offers, None as the others; without any it can be the one
                node which is never lost, with the driver on it.

        Raises:
            HostError: there is no right to make networks.
        """
        me = (os.getpid(), created_here())
        # In a network of its own every node can have the same.
        ports = Ports.at(20_000) if isolate else choose_ports()
        made = cls(
            os.urandom(4).hex(), num_cpus=num_cpus, ports=ports, subnet=None, owner=me,
            head_cpus=num_cpus if head_cpus is None else head_cpus,
        )  # fmt: skip
        # Written before anything that could be left.
        prepare_temp_dir(made._folder, ports)
        write_atomic(made._folder / "token", os.urandom(32).hex(), mode=0o600)
        made._write()
        try:
            if isolate:
                made._subnet = network.make_switch(made.id)
                made._write()
        except BaseException:
            made.remove()
            raise
        return made

    @property
    def address(self) -> str:
        """`host:port` of the cluster, for `ray.init` and `cluster.address`."""
        return f"{self.nodes[0].host}:{self.nodes[0].ports.gcs}"

    @property
    def dashboard_url(self) -> str:
        """Dashboard and jobs API, which this machine reaches too."""
        return f"http://{self.nodes[0].host}:{self.nodes[0].ports.dashboard}"

    @property
    def env(self) -> dict[str, str]:
        """What a client sets before it imports Ray; the token's file is named in it."""
        token = self._folder / "token"
        env = cluster_env(self.id, self._head_ports, temp_dir=self._folder, token=token)
        # Where nodes have addresses of their own, Ray must not take loopback for its own.
        several = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1" if self._subnet else "0"}
        return {**env, **several, **TIMES}

    def add_node(self) -> Node:
        """Start one more node, and wait until it has joined.

        Raises:
            HostError: it does not start; with the essence of its log.
        """
        index = len(self.nodes)
        shared = index > 0 and not self._subnet
        node = Node(index, LOOPBACK, choose_ports() if shared else self._head_ports, None)
        if self._subnet:
            host = f"{self._subnet}.{network.FIRST_HOST + index}"
            node = Node(index, host, node.ports, network.node_namespace(self.id, index))
        # Written before anything that could be left.
        self.nodes.append(node)
        self._write()
        try:
            if self._subnet:
                network.plug_in(self.id, index, node.host)
            for _ in range(head.START_ATTEMPTS - 1):
                try:
                    self._start(node)
                    return node
                except HostError as error:
                    if error.code != "cluster-start-slow":
                        raise
                    self.kill_node(index)
            self._start(node)
        except BaseException:
            self.kill_node(index)
            network.unplug(self.id, index)
            self.nodes.remove(node)
            self._write()
            raise
        return node

    def _start(self, node: Node) -> None:
        folder = self._folder / f"n{node.index}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        config = ClusterConfig(num_cpus=self._num_cpus, object_store_bytes=80 * 2**20)
        if node.index == 0:
            command = head.head_command(config, node.ports, folder, node.host)
            # Of an option that is given twice the last counts; a config allows no 0.
            command.append(f"--num-cpus={self._head_cpus}")
        else:
            command = head.worker_command(
                config, node.ports, folder, address=self.address, host=node.host
            )
            if not self._subnet:
                command = [sys.executable, str(Path(__file__).with_name("join.py")), "start",
                           *command[command.index("start") + 1 :]]  # fmt: skip
        env = {
            **base_env(), **self.env, NODE_MARK: self._mark(node.index),
            "RAY_START_HOOK": "raylm.deploy.hook.without_ray_client",
        }  # fmt: skip
        log = folder / "start.log"
        process = head.spawn(self.inside(node.index, command), env, log, folder)
        self._started.append(process)
        _wait_until_joined(process, node, log)

    def inside(self, index: int, command: list[str]) -> list[str]:
        """The command that runs another one on a node, as the same process."""
        namespace = self.nodes[index].namespace
        return network.inside(namespace, command) if namespace else command

    def run(self, code: str, *arguments: str, node: int = 0, timeout_s: float = 180.0) -> str:
        """Run Python code as a driver on a node; returns what it printed.

        Raises:
            HostError: it failed; with the last lines of what it said.
        """
        command = self.inside(node, [sys.executable, "-c", code, *arguments])
        done = subprocess.run(
            command, env={**base_env(), **self.env}, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        if done.returncode:
            said = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise HostError(f"ended with {done.returncode}: {said}", code="nodes-driver")
        return done.stdout

    def pids(self, index: int) -> list[int]:
        """The live processes of a node; in a namespace, drivers there too."""
        found = set(owned.marked(NODE_MARK, self._mark(index)))
        namespace = self.nodes[index].namespace
        if namespace:
            found.update(network.pids_in(namespace))
        found -= owned.lineage()
        return sorted(pid for pid in found if created(pid) is not None)

    def kill_node(self, index: int) -> int:
        """SIGKILL to all of a node's processes; returns how many there were."""
        num = _kill(lambda: self.pids(index))
        for process in self._started:
            process.poll()
        return num

    def cut_link(self, index: int) -> None:
        """Nothing gets to or from a node any more; its processes live on, connections stay open.

        Raises:
            HostError: nodes that share loopback have no links.
        """
        self._set_link(index, up=False)

    def mend_link(self, index: int) -> None:
        """Join a node again; if it was called dead meanwhile, Ray ends it."""
        self._set_link(index, up=True)

    def _set_link(self, index: int, *, up: bool) -> None:
        if self.nodes[index].namespace is None:
            raise HostError(
                "nodes that share loopback have no links to cut",
                code="nodes-network",
                hint=network.NO_RIGHTS,
            )
        network.set_link(self.id, index, up=up)

    def freeze_node(self, index: int) -> None:
        """SIGSTOP: a node that hangs, with its connections open."""
        self._signal(index, signal.SIGSTOP)

    def thaw_node(self, index: int) -> None:
        """SIGCONT to a frozen node; if it was called dead meanwhile, Ray ends it."""
        self._signal(index, signal.SIGCONT)

    def remove(self) -> None:
        """End every process, and remove namespaces, links and folders."""

        def find() -> list[int]:
            on_nodes = [self.pids(node.index) for node in self.nodes]
            return sorted({*owned.marked(owned.MARK, self.id), *(p for o in on_nodes for p in o)})

        try:
            # Ray has nothing to save here, and a frozen process hears no SIGTERM.
            _kill(find)
            for process in self._started:
                process.wait(10)
        finally:
            network.remove(self.id)
        # Last: while it is there, the next one who sweeps tries again.
        shutil.rmtree(self._folder, ignore_errors=True)

    def release(self) -> None:
        """From now on it stays when this process ends, until `remove`."""
        self._owner = None
        self._write()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "id": self.id, "num_cpus": self._num_cpus, "head_cpus": self._head_cpus,
            "ports": self._head_ports.to_dict(),
            "subnet": self._subnet, "owner": self._owner,
            "nodes": [asdict(node) for node in self.nodes],
        }  # fmt: skip

    @classmethod
    def read(cls, folder: Path) -> Nodes:
        """A cluster that another process made."""
        raw = json.loads((folder / STATE).read_text(encoding="utf-8"))
        owner = (int(raw["owner"][0]), float(raw["owner"][1])) if raw["owner"] else None
        ports = Ports.from_dict(raw["ports"])
        found = cls(
            raw["id"], num_cpus=raw["num_cpus"], head_cpus=raw["head_cpus"], ports=ports,
            subnet=raw["subnet"], owner=owner,
        )  # fmt: skip
        found.nodes = [Node(**{**n, "ports": Ports.from_dict(n["ports"])}) for n in raw["nodes"]]
        return found

    @property
    def is_left_over(self) -> bool:
        """Whether its owner is gone; without one, whether nothing of it runs."""
        if self._owner is not None:
            return not is_same(*self._owner)
        return bool(self.nodes) and not owned.marked(owned.MARK, self.id)

    @property
    def is_owned(self) -> bool:
        """Whether it ends with the process that made it."""
        return self._owner is not None

    def _mark(self, index: int) -> str:
        return f"{self.id}-{index}"

    def _signal(self, index: int, number: signal.Signals) -> None:
        # Twice: a process may start another one in between.
        for _ in range(2):
            for pid in self.pids(index):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _write(self) -> None:
        write_atomic(self._folder / STATE, json.dumps(self.to_dict()) + "\n", mode=0o600)


def _kill(find: owned.Find) -> int:
    """SIGKILL until nothing is found, with no word before it; how many there were."""
    seen: set[int] = set()
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while pids := find():
        if time.monotonic() > deadline:
            raise HostError(f"still there after SIGKILL: {pids}", code="nodes-kill")
        seen.update(pids)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return len(seen)


def _wait_until_joined(process: subprocess.Popen[bytes], node: Node, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        started = "Ray runtime started." in log.read_text(errors="replace")
        if started and is_listening(node.ports.node_manager, node.host):
            return
        if process.poll() is not None:
            what = f"node {node.index} ended at its start with code {process.returncode}"
            raise head.start_error(f"{what}: {head.last_cause(log)}", f"the log was {log}")
        if time.monotonic() > deadline:
            raise head.start_error(
                f"node {node.index} did not join in time: {head.last_cause(log)}", f"see {log}"
            )
        time.sleep(0.1)
