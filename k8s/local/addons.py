"""What stands in the cluster before anything is released to it: DNS and KubeRay."""

from __future__ import annotations

from pathlib import Path

from k8s.local.kubectl import kubectl, wait_for

_MANIFESTS = Path(__file__).parent / "manifests"
_OVERLAY = Path(__file__).parents[1] / "overlays" / "local"
_AVAILABLE_S = 180.0


def allow_network_policy() -> None:
    """What the nodes' enforcement of NetworkPolicy may read."""
    _apply("--filename", _MANIFESTS / "network-policy.yaml")


def apply_all() -> None:
    """CoreDNS, KubeRay's definitions and operator, the namespace of releases."""
    _apply("--filename", _MANIFESTS / "coredns.yaml")
    _apply("--kustomize", _OVERLAY)


def wait_dns() -> None:
    """Return when names are answered."""
    _available("kube-system", "coredns")


def wait_operator() -> None:
    """Return when KubeRay's objects can be made and its operator sees them."""
    for name in ("rayclusters", "rayjobs", "rayservices"):
        wait_for(["customresourcedefinition", f"{name}.ray.io"], "Established", _AVAILABLE_S)
    _available("kuberay-system", "kuberay-operator")


def _apply(kind: str, path: Path) -> None:
    # On the server: KubeRay's definitions do not fit into an annotation.
    kubectl("apply", "--server-side", "--force-conflicts", kind, str(path), timeout_s=120)


def _available(namespace: str, name: str) -> None:
    wait_for(["deployment", name, f"--namespace={namespace}"], "Available", _AVAILABLE_S)
