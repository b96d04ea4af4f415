"""Nodes are started, lost and added, with a real Ray cluster; nothing is left of them."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster.local import Nodes, local_nodes, network
from cluster.local.lifetime import find_nodes, sweep
from raylm.deploy import owned
from raylm.deploy.environment import temp_dir_for
from raylm.errors import ConfigError, HostError

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
CONNECT = """
import json, sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
"""
TASKS = (
    CONNECT
    + """
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_id()
asked = [n["NodeID"] for n in ray.nodes() if n["Alive"]]
at = [NodeAffinitySchedulingStrategy(node, soft=False) for node in asked]
found = ray.get([where.options(scheduling_strategy=a).remote() for a in at])
hosts = {n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
print(json.dumps([asked == found, len(found), sorted(hosts)]))
"""
)
DEAD = (
    CONNECT
    + """
deadline = time.monotonic() + 100
while sum(not n["Alive"] for n in ray.nodes()) < int(sys.argv[2]):
    assert time.monotonic() < deadline, ray.nodes()
    time.sleep(0.2)
print(json.dumps([n["Alive"] for n in ray.nodes()]))
"""
)
ORPHAN = """
import os, signal, sys
from cluster.local import local_nodes
with local_nodes(1, isolate=sys.argv[1] == "True") as nodes:
    print(nodes.id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
ISOLATE = [
    pytest.param(
        True,
        marks=pytest.mark.skipif(
            not network.may_isolate(), reason="no right to make network namespaces"
        ),
    ),
    False,
]


def left_of(cluster_id: str) -> list[object]:
    """Whatever there still is of a cluster."""
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True).stdout
    return [
        *owned.marked(owned.MARK, cluster_id),
        *network.namespaces(cluster_id),
        *re.findall(rf"\S*{cluster_id}\S*", links),
        *([temp_dir_for(cluster_id)] if temp_dir_for(cluster_id).exists() else []),
    ]


@pytest.fixture(scope="module", params=ISOLATE)
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with local_nodes(2, num_cpus=1, isolate=request.param) as found:
        yield found
    assert left_of(found.id) == []


def tasks(nodes: Nodes) -> tuple[bool, int, list[str]]:
    ran, num, hosts = last_line(nodes.run(TASKS, nodes.address))
    return ran, num, hosts


def last_line(text: str) -> Any:
    """Before it Ray may say that a node died."""
    return json.loads(text.splitlines()[-1])


def test_each_node_does_work_until_it_is_killed_or_hangs(nodes: Nodes) -> None:
    isolated = nodes.nodes[0].namespace is not None
    ran, num, hosts = tasks(nodes)
    assert (ran, num) == (True, 2)
    assert hosts == sorted({node.host for node in nodes.nodes})
    assert len(hosts) == (2 if isolated else 1)
    assert set(nodes.pids(0)).isdisjoint(nodes.pids(1))

    assert nodes.kill_node(1) >= 2, "a raylet and its agent at least"
    assert nodes.pids(1) == []
    assert sorted(last_line(nodes.run(DEAD, nodes.address, "1"))) == [False, True]
    assert tasks(nodes)[:2] == (True, 1), "the other one goes on"

    added = nodes.add_node()
    assert added.index == 2
    assert tasks(nodes)[:2] == (True, 2)

    nodes.freeze_node(2)
    assert nodes.pids(2) != []
    assert sorted(last_line(nodes.run(DEAD, nodes.address, "2"))) == [False, False, True]
    assert tasks(nodes)[:2] == (True, 1)


def test_a_cut_link_loses_the_node_and_leaves_its_processes(nodes: Nodes) -> None:
    if nodes.nodes[0].namespace is None:
        with pytest.raises(HostError, match="share loopback have no links to cut"):
            nodes.cut_link(0)
        return
    added = nodes.add_node()
    nodes.cut_link(added.index)
    assert nodes.pids(added.index) != []
    alive = last_line(nodes.run(DEAD, nodes.address, str(added.index)))
    assert alive.count(True) == 1
    nodes.mend_link(added.index)
    wait_until(lambda: nodes.pids(added.index) == [])


def wait_until(holds: Callable[[], bool], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_client_without_the_token_is_refused(nodes: Nodes) -> None:
    env = {**nodes.env, "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        nodes.inside(0, [sys.executable, "-c", TASKS, nodes.address]),
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == ""


@pytest.mark.parametrize("isolate", ISOLATE)
def test_what_a_killed_owner_left_is_swept(isolate: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(isolate)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    cluster_id = done.stdout.strip()
    assert len(left_of(cluster_id)) >= 5
    sweep()
    assert left_of(cluster_id) == []


def test_by_hand_nodes_stay_until_they_are_taken_down() -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cluster.local", *words],
            cwd=ROOT, capture_output=True, text=True, timeout=400,
        )  # fmt: skip

    with suppress(ConfigError):
        pytest.skip(f"nodes are up by hand: {find_nodes().id}")
    assert "error[nodes-none]" in command("kill", "1").stderr
    up = command("up", "--nodes", "1")
    assert up.returncode == 0, up.stderr
    found = find_nodes()
    try:
        sweep()
        assert f"address    {found.address}" in up.stdout
        said = command("run", "--", sys.executable, "-c", TASKS, found.address)
        assert last_line(said.stdout)[:2] == [True, 1], said.stderr
        assert command("up").returncode == 2
        assert "there is no node 1; there are 0 to 0" in command("kill", "1").stderr
    finally:
        down = command("down")
    assert down.returncode == 0, down.stderr
    assert left_of(found.id) == []
    with pytest.raises(ConfigError, match="no nodes are up"):
        find_nodes()
