"""What is lost of a release under load: pods, a node's kubelet, the operator, an image."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import served
from tests.e2e.deploy import deploy, status
from tests.e2e.load import Seen, under_load
from tests.e2e.place import Place, idle_pod, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]
_RECOVERY_S = 240.0
_NODE_S = 120.0


def is_whole(cluster: Place, release: str, *, without: str = "") -> bool:
    """All pods are ready, and none is the one that was lost.

    A third worker may have come to make room for new replicas, and may have kept some. KubeRay's
    job that clears Redis of a cluster that is gone has that cluster's image, maybe an absent one,
    and is given up after 5 minutes.
    """
    found = cluster.items(
        "pods", f"app.kubernetes.io/instance={release},ray.io/node-type!=redis-cleanup"
    )
    names = [pod["metadata"]["name"] for pod in found]
    return len(found) >= 4 and without not in names and all(map(_is_ready, found))


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def lose(cluster: Place, release: str, role: str, *words: str) -> float:
    """Delete a pod; the seconds until another has taken its place and is ready."""
    pod = served.pods(cluster, release, role)[0]
    cluster.kubectl("delete", "pod", pod, "--wait=false", *words)
    return until(f"another {role}", lambda: is_whole(cluster, release, without=pod), _RECOVERY_S)


def test_a_worker_that_is_deleted_breaks_nothing(
    cluster: Place, release: str, seen: list[Seen]
) -> None:
    with under_load(cluster, release, "worker pod deleted", seen) as load:
        load.over(lose(cluster, release, "worker"))
    assert seen[-1].num_failed == 0


def test_a_worker_that_is_killed_breaks_only_streams_through_its_own_gateway(
    cluster: Place, release: str, seen: list[Seen]
) -> None:
    with under_load(cluster, release, "worker pod killed", seen) as load:
        load.over(lose(cluster, release, "worker", "--grace-period=0", "--force"))
    assert set(seen[-1].failures) <= {"broken stream", "connect"}
    assert seen[-1].num_failed < seen[-1].num_requests / 4


def test_the_head_is_lost_and_nobody_notices(
    cluster: Place, release: str, seen: list[Seen]
) -> None:
    with under_load(cluster, release, "head pod deleted", seen) as load:
        load.over(lose(cluster, release, "head"))
    assert seen[-1].num_failed == 0


def test_the_operator_is_lost_and_nobody_notices(
    cluster: Place, release: str, seen: list[Seen]
) -> None:
    operator = "app.kubernetes.io/component=kuberay-operator"
    words = ("pods", "-A", "-l", operator)
    (pod,) = cluster.get(*words)["items"]
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]

    def is_back() -> bool:
        found = cluster.get(*words)["items"]
        return [p["metadata"]["name"] for p in found] != [name] and all(map(_is_ready, found))

    with under_load(cluster, release, "operator killed", seen) as load:
        cluster.kubectl(
            "delete", "pod", name, f"--namespace={namespace}", "--grace-period=0", "--force"
        )
        load.over(until("another operator", is_back, _RECOVERY_S))
    assert seen[-1].num_failed == 0


def test_of_an_image_that_does_not_exist_the_status_says_so_and_the_old_pods_go_on(
    cluster: Place, release: str, file: Path, seen: list[Seen]
) -> None:
    tag = "deploy.serving.image.tag=there-is-none"
    with under_load(cluster, release, "upgrade to an image that does not exist", seen):
        done = deploy("upgrade", "-c", file, "--set", tag, "--wait-s", "40")
        assert done.returncode != 0
        until("the cause", lambda: "there-is-none" in str(status(file)["causes"]), 60)
        done = deploy("rollback", "-c", file)
        assert done.returncode == 0, done.stderr
        until("the old pods alone", lambda: is_whole(cluster, release), _RECOVERY_S)
    assert seen[-1].num_failed == 0


def test_a_nodes_kubelet_stops_and_streams_go_on(
    cluster: Place, release: str, seen: list[Seen]
) -> None:
    if not cluster.is_local:
        pytest.skip("the nodes of another cluster are not hurt")
    from k8s.local import node, processes
    from k8s.local.plan import WORKERS

    worker = WORKERS[1]  # the client is on the other
    pid = processes.recorded(f"{worker.name}.kubelet")
    assert pid

    def is_ready() -> bool:
        return _is_ready(cluster.get("node", worker.name))

    with under_load(cluster, release, "kubelet of a node stopped", seen) as load:
        os.kill(pid, signal.SIGKILL)
        until("the node is not ready", lambda: not is_ready(), _NODE_S)
        node.start_kubelet(worker)
        load.over(until("the node is ready", is_ready, _NODE_S))
        until("all pods are ready", lambda: is_whole(cluster, release), _RECOVERY_S)
    assert seen[-1].num_failed == 0


def test_a_stranger_reaches_the_endpoint_and_none_of_rays_ports(
    cluster: Place, release: str
) -> None:
    stranger = "stranger"
    cluster.apply(idle_pod(stranger, cluster.image))
    cluster.wait_ready(stranger)
    head = served.pods(cluster, release, "head")[0]
    worker = served.pods(cluster, release, "worker")[0]
    open_ports = _reach(cluster, stranger, worker, 8000)
    closed = [_reach(cluster, stranger, head, port) for port in (6379, 8265, 8080, 52365)]
    own = _reach(cluster, worker, head, 6379)
    cluster.kubectl("delete", "pod", stranger, "--wait=false")
    assert (open_ports, closed, own) == (True, [False] * 4, True)


def _reach(cluster: Place, source: str, target: str, port: int) -> bool:
    address = cluster.get(f"pod/{target}")["status"]["podIP"]
    script = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()\n"
        "except OSError: print('closed')\n"
        "else: print('open')"
    )
    return cluster.python(source, script, address, str(port)).strip() == "open"
