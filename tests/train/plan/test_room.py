import socket
from pathlib import Path

import psutil
import pytest

from raylm.config.train import TrainConfig
from raylm.train.plan.room import Node, Room, _cgroup, cluster_room, this_node

GIB = 2**30


def room(*nodes: tuple[float, int]) -> Room:
    return Room(tuple(Node(cpus, gib * GIB) for cpus, gib in nodes))


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "expected"),
    [
        (room((2, 8)), 1, 1.0, 8),
        (room((2, 8)), 2, 1.0, 4),
        (room((4, 8)), 2, 1.0, 4),
        (room((4, 8)), 4, 0.5, 2),
        (room((2, 8)), 3, 1.0, 0),  # one cannot be placed
        (room((2, 8), (2, 8)), 3, 1.0, 4),  # the node that has two decides
        (room((2, 8), (2, 2)), 4, 1.0, 1),
        (room((1, 1), (8, 16)), 4, 1.0, 4),  # the larger node takes all
    ],
)
def test_a_worker_has_its_share_of_its_node(
    nodes: Room, workers: int, cpus: float, expected: int
) -> None:
    config = TrainConfig(workers=workers, global_batch=24, micro_batch=1, cpus_per_worker=cpus)
    assert nodes.worker_bytes(config) == expected * GIB


@pytest.mark.parametrize(
    ("workers", "share", "expected"),
    [(1, 1.0, 80), (2, 1.0, 70), (3, 1.0, 0), (2, 0.5, 40), (4, 0.5, 35)],
)
def test_on_gpus_the_smallest_that_is_taken_decides(
    workers: int, share: float, expected: int
) -> None:
    node = Node(64, 500 * GIB, (70 * GIB, 80 * GIB))
    config = TrainConfig(workers=workers, global_batch=24, micro_batch=1, gpus_per_worker=share)
    assert Room((node,)).worker_bytes(config) == expected * GIB


def test_this_node_leaves_what_ray_never_lets_workers_use() -> None:
    memory = psutil.virtual_memory()
    assert 0 < this_node(2).memory_bytes < memory.available


def test_the_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert _cgroup(tmp_path) == (1000, 550)
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup(tmp_path) == (None, 0)


def test_the_limit_of_a_control_group_of_version_1(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000")
    (folder / "memory.usage_in_bytes").write_text("700")
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\n")
    assert _cgroup(tmp_path) == (1000, 600)


def test_of_other_machines_ray_tells() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8.0 * GIB, "node:10.0.0.1": 1.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "memory": 6.0 * GIB, "node:10.0.0.2": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "memory": 900.0 * GIB}},
    ]
    assert cluster_room(nodes) == room((4, 8), (2, 6))


def test_a_cluster_of_this_machine_alone_is_looked_at() -> None:
    resources = {"CPU": 3.0, "memory": 1.0}
    here = {"Alive": True, "NodeManagerHostname": socket.gethostname(), "Resources": resources}
    (node,) = cluster_room([here]).nodes
    assert node.num_cpus == 3
    assert node.memory_bytes > 10**6
    elsewhere = {**here, "NodeManagerHostname": "another"}
    assert cluster_room([elsewhere]).nodes[0].memory_bytes == 1


@pytest.mark.parametrize(
    ("nodes", "values", "why", "is_certain"),
    [
        (room((2, 8)), {"workers": 64}, "cannot be placed: 64 CPUs wanted, 2 here", True),
        (room((2, 8)), {"workers": 1, "gpus_per_worker": 1.0}, "GPUs cannot be seen", False),
        (
            Room((Node(8, GIB, (GIB,)),)), {"workers": 2, "gpus_per_worker": 1.0},
            "cannot be placed: 2 GPUs wanted, 1 here", True,
        ),
        # Of each of two nodes half is left over.
        (
            room((3, 8), (3, 8)), {"workers": 3, "cpus_per_worker": 2.0},
            "cannot be placed: 3 workers wanted, of each node's share there is room for 2", True,
        ),
        # A validation beside the training takes a core too.
        (
            room((2, 8)), {"workers": 2, "validate_aside": {"num_cpus": 1.0}},
            "cannot be placed: 3 CPUs wanted, 2 here", True,
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_is_told_by_what_is_short(
    nodes: Room, values: dict[str, object], why: str, is_certain: bool
) -> None:
    config = TrainConfig.model_validate({"global_batch": 192, "micro_batch": 1} | values)
    found = nodes.shortage(config)
    assert found is not None
    assert found.why.startswith(why)
    assert found.is_certain is is_certain
    assert nodes.worker_bytes(config) == nodes.host_bytes(config) == 0


def test_an_elastic_run_takes_the_workers_that_there_is_room_for() -> None:
    config = TrainConfig.model_validate({"workers": {"min": 1, "max": 8}, "global_batch": 64})
    assert room((2, 8)).worker_bytes(config) == 4 * GIB
    assert room((2, 8)).shortage(config) is None


def test_without_workers_the_process_has_all_of_the_node() -> None:
    config = TrainConfig(workers=0, cpus_per_worker=4.0)
    assert room((2, 8)).worker_bytes(config) == 8 * GIB


def test_workers_on_gpus_share_their_hosts_memory() -> None:
    node = Node(64, 500 * GIB, (70 * GIB, 80 * GIB))
    config = TrainConfig(workers=2, global_batch=24, micro_batch=1, gpus_per_worker=1.0)
    assert Room((node,)).host_bytes(config) == 250 * GIB
