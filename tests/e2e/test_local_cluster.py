"""`make cluster-up` and `make cluster-down`, for real: needs root and Debian's packages."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from k8s.local import images, importing, processes
from k8s.local.down import remains
from k8s.local.kubectl import apply, get, kubectl, wait_for
from k8s.local.layout import KUBECONFIG
from k8s.local.plan import WORKERS
from k8s.local.requirements import NotHere, check
from raylm.errors import HostError
from tests.e2e.machine_state import MachineState

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

_NAMESPACE = "trial"
_PORT = 8000
_SERVER = f"""
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => {_PORT}, Listen => 9, ReuseAddr => 1) or die $!;
while (my $c = $s->accept) {{ print $c "hello from $ENV{{HOSTNAME}}\\n"; close $c; }}
"""


def _command(name: str, timeout_s: float = 2400) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "k8s.local", name],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    print(done.stderr)
    return done


@pytest.fixture(scope="module")
def before() -> Iterator[MachineState]:
    """The machine before the cluster, which is gone in the end whatever happens."""
    try:
        check()
    except NotHere as error:
        pytest.skip(error.message)
    if remains():
        pytest.fail("there is a cluster: `make cluster-down` first")
    state = MachineState.now()
    yield state
    _command("down")


@pytest.fixture(scope="module")
def cluster(before: MachineState) -> None:
    done = _command("up")
    assert done.returncode == 0, done.stderr
    importing.import_archives([images.ensure(images.base())])
    kubectl("create", "namespace", _NAMESPACE)
    words = ("--for=create", "serviceaccount/default", f"--namespace={_NAMESPACE}")
    kubectl("wait", *words, "--timeout=30s")
    apply(*[_pod(f"server-{worker.name}", worker.name) for worker in WORKERS], _service())
    for worker in WORKERS:
        wait_for(["pod", f"server-{worker.name}", f"--namespace={_NAMESPACE}"], "Ready", 90)


def _pod(name: str, node: str, app: str = "server") -> dict[str, Any]:
    container = {
        "name": "main",
        "image": images.base().name,
        "imagePullPolicy": "Never",
        "command": ["perl", "-e", _SERVER] if app == "server" else ["sleep", "3600"],
    }
    if app == "server":
        container["readinessProbe"] = {"tcpSocket": {"port": _PORT}, "periodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": _NAMESPACE, "labels": {"app": app}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        },
    }


def _service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "hello", "namespace": _NAMESPACE},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": _PORT}]},
    }


def _in_pod(name: str, script: str) -> str:
    return kubectl("exec", f"--namespace={_NAMESPACE}", name, "--", "bash", "-c", script)


def _read(host: str, port: int, wait_s: int = 5) -> str:
    """A line of bash that prints what a server sends."""
    return f"timeout {wait_s} bash -c 'cat < /dev/tcp/{host}/{port}'"


@pytest.mark.usefixtures("cluster")
class TestUp:
    def test_up_again_changes_nothing(self) -> None:
        pids = {name: processes.recorded(name) for name in processes.names()}
        assert _command("up").returncode == 0
        assert {name: processes.recorded(name) for name in processes.names()} == pids
        assert None not in pids.values()

    def test_only_root_reads_the_keys(self) -> None:
        assert KUBECONFIG.stat().st_mode & 0o777 == 0o600
        assert KUBECONFIG.parent.stat().st_mode & 0o777 == 0o700

    def test_versions_are_known(self) -> None:
        assert json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
        versions = {node["status"]["nodeInfo"]["kubeletVersion"] for node in get("nodes")["items"]}
        assert versions == {"v1.36.3"}

    def test_each_node_runs_a_pod_with_an_address_of_its_own_network(self) -> None:
        from ipaddress import IPv4Address

        for worker in WORKERS:
            pod = get("pod", f"server-{worker.name}", f"--namespace={_NAMESPACE}")
            assert pod["spec"]["nodeName"] == worker.name
            assert IPv4Address(pod["status"]["podIP"]) in worker.pods

    @pytest.mark.parametrize("worker", WORKERS, ids=lambda worker: worker.name)
    def test_a_service_is_found_by_name_and_reaches_both_nodes(self, worker: Any) -> None:
        name = f"hello.{_NAMESPACE}.svc.cluster.local"
        found = _in_pod(f"server-{worker.name}", f"getent hosts {name}").split()[0]
        assert found == get("service", "hello", f"--namespace={_NAMESPACE}")["spec"]["clusterIP"]
        loop = f"for i in $(seq 24); do {_read('hello', 80)}; done"
        lines = set(_in_pod(f"server-{worker.name}", loop).splitlines())
        assert lines == {f"hello from server-{one.name}" for one in WORKERS}

    def test_pods_reach_the_api_and_each_other_by_name(self) -> None:
        address = _in_pod("server-node-1", "getent hosts kubernetes.default").split()[0]
        assert address == "10.233.0.1"
        _in_pod("server-node-1", f"exec 3<>/dev/tcp/{address}/443")

    def test_a_service_is_reached_from_this_machine(self) -> None:
        address = get("service", "hello", f"--namespace={_NAMESPACE}")["spec"]["clusterIP"]
        done = subprocess.run(
            ["bash", "-c", _read(address, 80)], capture_output=True, text=True, timeout=30
        )
        assert done.stdout.startswith("hello from server-node-")

    def test_logs_come_from_both_nodes(self) -> None:
        for worker in WORKERS:
            name = f"logger-{worker.name}"
            pod = _pod(name, worker.name, "logger")
            pod["spec"]["containers"][0]["command"] = ["echo", f"I am {name}"]
            pod["spec"]["restartPolicy"] = "Never"
            apply(pod)
            kubectl(
                "wait", f"--namespace={_NAMESPACE}", "--for=jsonpath={.status.phase}=Succeeded",
                f"pod/{name}", "--timeout=60s", timeout_s=90,
            )  # fmt: skip
            assert kubectl("logs", f"--namespace={_NAMESPACE}", name) == f"I am {name}\n"

    def test_a_network_policy_keeps_strangers_out_and_lets_friends_in(self) -> None:
        pods = [(f"{app}-{worker.name}", worker.name, app) for worker in WORKERS
                for app in ("friend", "stranger")]  # fmt: skip
        apply(*[_pod(*pod) for pod in pods])
        for name, _, _ in pods:
            wait_for(["pod", name, f"--namespace={_NAMESPACE}"], "Ready", 60)
        server = get("pod", "server-node-1", f"--namespace={_NAMESPACE}")["status"]["podIP"]
        assert "hello" in _in_pod("stranger-node-1", _read(server, _PORT))
        apply(_policy())
        for place in ("node-1", "node-2"):
            _wait_closed(f"stranger-{place}", server)
            assert "hello" in _in_pod(f"friend-{place}", _read(server, _PORT))

    def test_the_operator_makes_pods_of_a_ray_cluster(self) -> None:
        apply(_ray_cluster())
        labels = "ray.io/cluster=small,ray.io/node-type=head"

        def pods() -> list[Any]:
            found: list[Any] = get("pods", f"--namespace={_NAMESPACE}", "-l", labels)["items"]
            return found

        processes.wait_until("the head's pod", lambda: bool(pods()), 60, poll_s=0.5)
        assert get("service", "small-head-svc", f"--namespace={_NAMESPACE}")
        kubectl("delete", "raycluster", "small", f"--namespace={_NAMESPACE}", timeout_s=90)

    def test_the_namespace_of_releases_refuses_a_pod_with_rights(self) -> None:
        pod = _pod("mighty", "node-1")
        pod["metadata"]["namespace"] = "raylm"
        with pytest.raises(HostError, match="violates PodSecurity"):
            apply(pod)

    def test_a_dead_kubelet_is_seen_and_up_makes_the_cluster_whole(self) -> None:
        pid = processes.recorded("node-2.kubelet")
        assert pid
        os.kill(pid, signal.SIGKILL)
        status = _command("status")
        assert status.returncode == 1
        assert "ended: node-2.kubelet" in status.stderr
        assert _command("up").returncode == 0
        assert _command("status").returncode == 0


def test_down_leaves_the_machine_as_it_was(cluster: None, before: MachineState) -> None:
    assert MachineState.now() != before
    assert _command("down").returncode == 0
    assert remains() == []
    after = MachineState.now()
    assert after.links == before.links
    assert after.routes == before.routes
    assert after.rules == before.rules
    assert after.settings == before.settings
    assert after.folders == before.folders
    assert after.processes == before.processes
    assert after.mounts == before.mounts
    assert not Path("/var/lib/raylm-k8s").exists()
    assert _command("down").returncode == 0


def _policy() -> dict[str, Any]:
    friends = {"podSelector": {"matchLabels": {"app": "friend"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "friends", "namespace": _NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [friends], "ports": [{"port": _PORT}]}],
        },
    }


def _wait_closed(pod: str, address: str) -> None:
    """Policies take effect a moment after they are made."""
    deadline = time.monotonic() + 30
    while True:
        try:
            _in_pod(pod, _read(address, _PORT, wait_s=2))
        except HostError:
            return
        assert time.monotonic() < deadline, f"{pod} is let in"


def _ray_cluster() -> dict[str, Any]:
    container = {"name": "ray-head", "image": images.base().name, "imagePullPolicy": "Never"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "small", "namespace": _NAMESPACE},
        "spec": {
            "headGroupSpec": {
                "rayStartParams": {},
                "template": {"spec": {"containers": [container]}},
            }
        },
    }
