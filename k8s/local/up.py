"""All of it: from packages and Go modules to a cluster with DNS and KubeRay."""

from __future__ import annotations

from pathlib import Path

from k8s.local import (
    addons,
    binaries,
    control_plane,
    images,
    importing,
    machine,
    network,
    node,
    plan,
    processes,
)
from k8s.local.down import down, remains
from k8s.local.kubectl import api_is_ready
from k8s.local.layout import COMPLETE, KUBECONFIG, STATE
from k8s.local.plan import WORKERS
from k8s.local.stages import Stages, say
from raylm.errors import HostError


def up() -> None:
    """Make a cluster; one that is up stays as it is, one that is half made is made anew.

    Raises:
        HostError: a stage failed; what was made is left for its logs, until `down` or `up`.
    """
    if is_up():
        say(f"the cluster is up: KUBECONFIG={KUBECONFIG}")
        return
    stages = Stages()
    if remains():
        with stages.stage("remove a cluster that is not whole"):
            down()
    _make(stages)
    COMPLETE.touch()
    stages.end("the cluster is up")
    say(f"KUBECONFIG={KUBECONFIG}")


def is_up() -> bool:
    """Whether a cluster was made to the end, all its processes live, and it answers."""
    return COMPLETE.exists() and not dead() and api_is_ready()


def dead() -> list[str]:
    """Names of processes that were started and have ended."""
    return [name for name in processes.names() if processes.recorded(name) is None]


def _make(stages: Stages) -> None:
    with stages.stage("Kubernetes (Go)"):
        programs = binaries.ensure(binaries.KUBERNETES)
    with stages.stage("KubeRay (Go)"):
        binaries.ensure(binaries.KUBERAY)
    with stages.stage("images (buildah)"):
        archives = [images.ensure(image) for image in images.cluster_images()]
    with stages.stage("machines and network"):
        _make_machines(programs)
    with stages.stage("control plane ready"):
        control_plane.start_all()
    with stages.stage("containerd, images imported"):
        for worker in WORKERS:
            node.start_containerd(worker)
        importing.import_archives(archives)
    with stages.stage("nodes Ready"):
        addons.allow_network_policy()
        for worker in WORKERS:
            node.start_kubelet(worker)
        for worker in WORKERS:
            node.wait_registered(worker)
            node.start_network(worker)
        for worker in WORKERS:
            node.wait_ready(worker)
    with stages.stage("DNS and KubeRay applied"):
        addons.apply_all()
    with stages.stage("DNS available"):
        addons.wait_dns()
    with stages.stage("KubeRay operator available"):
        addons.wait_operator()
    if ended := dead():
        raise HostError(f"{ended[0]} has ended:\n{processes.last_lines(ended[0])}", code="k8s-died")


def _make_machines(programs: Path) -> None:
    STATE.mkdir(mode=0o700)
    network.make()
    for one in plan.ALL:
        machine.make(one, programs)
