"""The control plane, on a machine of its own: etcd, API server, controller manager, scheduler."""

from __future__ import annotations

from pathlib import Path

from k8s.local import certificates
from k8s.local.kubectl import api_is_ready
from k8s.local.layout import BINARIES_INSIDE, INSIDE, KEYS, KUBECONFIG
from k8s.local.machine import give, start
from k8s.local.plan import API_PORT, CONTROL, PODS, SERVICES
from k8s.local.processes import wait_until

_READY_S = 120.0
_ETCD = "http://127.0.0.1:2379"
_SERVED_KEYS = (
    "ca.crt", "ca.key", "accounts.key", "accounts.pub", "apiserver.crt", "apiserver.key",
    "kubelet-client.crt", "kubelet-client.key",
)  # fmt: skip


def start_all() -> None:
    """Start it, and return when the API server is ready.

    Raises:
        HostError: it is not, in time, with the end of its log.
    """
    certificates.make_all(KEYS)
    for name in _SERVED_KEYS:
        give(CONTROL, f"keys/{name}", (KEYS / name).read_bytes())
    for name, identity in (
        ("controller-manager", certificates.CONTROLLER_MANAGER),
        ("scheduler", certificates.SCHEDULER),
    ):
        give(CONTROL, f"{name}.kubeconfig", certificates.kubeconfig(KEYS, identity))
    _write_kubeconfig()
    start(CONTROL, "etcd", etcd())
    server = start(CONTROL, "kube-apiserver", api_server())
    wait_until(
        "the API server", api_is_ready, _READY_S, dies_with=("control.kube-apiserver", server)
    )
    start(CONTROL, "kube-controller-manager", controller_manager())
    start(CONTROL, "kube-scheduler", scheduler())


def etcd() -> list[str]:
    """Its command. Plain HTTP: nobody but the control machine reaches its loopback."""
    return [
        "etcd",
        "--name=control",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={_ETCD}",
        f"--advertise-client-urls={_ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--log-level=warn",
    ]


def api_server() -> list[str]:
    """Its command."""
    keys = INSIDE / "keys"
    return [
        _program("kube-apiserver"),
        f"--advertise-address={CONTROL.address}",
        f"--bind-address={CONTROL.address}",
        f"--secure-port={API_PORT}",
        f"--etcd-servers={_ETCD}",
        f"--service-cluster-ip-range={SERVICES}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
        f"--client-ca-file={keys}/ca.crt",
        f"--tls-cert-file={keys}/apiserver.crt",
        f"--tls-private-key-file={keys}/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={keys}/accounts.pub",
        f"--service-account-signing-key-file={keys}/accounts.key",
        f"--kubelet-certificate-authority={keys}/ca.crt",
        f"--kubelet-client-certificate={keys}/kubelet-client.crt",
        f"--kubelet-client-key={keys}/kubelet-client.key",
        # Nodes' names are in no DNS; without this, logs and exec fail.
        "--kubelet-preferred-address-types=InternalIP",
    ]


def controller_manager() -> list[str]:
    """Its command. Pods' networks are in the plan, so none is allocated."""
    config = INSIDE / "controller-manager.kubeconfig"
    return [
        _program("kube-controller-manager"),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={INSIDE}/keys/accounts.key",
        f"--root-ca-file={INSIDE}/keys/ca.crt",
        f"--cluster-signing-cert-file={INSIDE}/keys/ca.crt",
        f"--cluster-signing-key-file={INSIDE}/keys/ca.key",
        f"--cluster-cidr={PODS}",
        "--allocate-node-cidrs=false",
        # By default it makes a folder in /usr, which is this machine's.
        f"--flex-volume-plugin-dir={INSIDE}/volume-plugins",
    ]


def scheduler() -> list[str]:
    """Its command."""
    config = INSIDE / "scheduler.kubeconfig"
    return [
        _program("kube-scheduler"),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]


def _write_kubeconfig() -> None:
    KUBECONFIG.touch(mode=0o600)
    KUBECONFIG.write_text(certificates.kubeconfig(KEYS, certificates.ADMIN))


def _program(name: str) -> str:
    return str(Path(BINARIES_INSIDE, name))
