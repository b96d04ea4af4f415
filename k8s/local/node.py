"""A worker node: containerd, kubelet, kube-proxy and the enforcement of NetworkPolicy."""

from __future__ import annotations

import json
from typing import Any

from k8s.local import certificates, cgroups
from k8s.local.kubectl import get, has_condition
from k8s.local.layout import BINARIES_INSIDE, INSIDE, KEYS
from k8s.local.machine import give, run_in, start
from k8s.local.plan import DNS_SERVICE, DOMAIN, PODS, SERVICES, Worker
from k8s.local.processes import wait_until
from raylm.errors import HostError

PAUSE_IMAGE = "raylm.local/pause:1"
SOCKET = "/run/containerd/containerd.sock"
_CONTAINERD_S = 30.0
_READY_S = 120.0


def start_containerd(worker: Worker) -> None:
    """Start what runs containers; images can be imported after that."""
    give(worker, "cni/10-raylm.conflist", as_json(cni(worker)))
    config = give(worker, "containerd.toml", containerd())
    waiting = start(worker, "containerd", ["containerd", f"--config={config}"])
    wait_until(
        f"containerd on {worker.name}",
        lambda: _answers(worker),
        _CONTAINERD_S,
        dies_with=(f"{worker.name}.containerd", waiting),
        poll_s=0.3,
    )


def start_kubelet(worker: Worker) -> None:
    """Start the kubelet, which registers the node. It may be started again after its death."""
    cgroup = cgroups.make(worker)
    identity = certificates.kubelet(worker)
    for suffix in ("crt", "key"):
        name = f"{identity.file}.{suffix}"
        give(worker, f"keys/kubelet.{suffix}", (KEYS / name).read_bytes())
    give(worker, "keys/ca.crt", (KEYS / "ca.crt").read_bytes())
    access = give(worker, "kubelet.kubeconfig", certificates.kubeconfig(KEYS, identity))
    config = give(worker, "kubelet.json", as_json(kubelet(cgroup)))
    start(
        worker,
        "kubelet",
        [
            _program("kubelet"),
            f"--config={config}",
            f"--kubeconfig={access}",
            f"--hostname-override={worker.name}",
            f"--node-ip={worker.address}",
        ],
    )


def start_network(worker: Worker) -> None:
    """Start what makes Services and NetworkPolicies true on the node."""
    access = give(worker, "proxy.kubeconfig", certificates.kubeconfig(KEYS, certificates.PROXY))
    config = give(worker, "proxy.json", as_json(proxy(worker, access)))
    start(worker, "kube-proxy", [_program("kube-proxy"), f"--config={config}"])
    identity = certificates.NETWORK_POLICY
    access = give(worker, "network-policy.kubeconfig", certificates.kubeconfig(KEYS, identity))
    start(
        worker,
        "networkpolicy",
        [
            _program("networkpolicy"),
            f"--kubeconfig={access}",
            f"--node={worker.name}",
            f"--services={SERVICES}",
        ],
    )


def wait_registered(worker: Worker) -> None:
    """Return when the API server knows the node."""
    wait_until(f"{worker.name} registered", lambda: worker.name in _nodes(), _READY_S, poll_s=0.5)


def wait_ready(worker: Worker) -> None:
    """Return when the node is Ready.

    Raises:
        HostError: it is not, in time.
    """
    wait_until(
        f"{worker.name} Ready",
        lambda: has_condition(_nodes().get(worker.name, {}), "Ready"),
        _READY_S,
        poll_s=0.5,
    )


def containerd() -> str:
    """Its configuration."""
    plugins = "io.containerd"
    return f"""version = 2
disabled_plugins = [
  "{plugins}.snapshotter.v1.aufs", "{plugins}.snapshotter.v1.btrfs",
  "{plugins}.snapshotter.v1.devmapper", "{plugins}.snapshotter.v1.zfs",
]
[plugins."{plugins}.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Where the right to lower oom_score_adj is missing, every pod would die without this.
  restrict_oom_score_adj = true
[plugins."{plugins}.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{INSIDE}/cni"
[plugins."{plugins}.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "{plugins}.runc.v2"
[plugins."{plugins}.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def cni(worker: Worker) -> dict[str, Any]:
    """Each pod has a cable to its node, and the node routes: every packet passes its rules."""
    ranges = [[{"subnet": str(worker.pods)}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    return {
        "cniVersion": "0.4.0",
        "name": "raylm",
        "plugins": [
            {"type": "ptp", "ipMasq": False, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def kubelet(cgroup: str) -> dict[str, Any]:
    """Its configuration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{INSIDE}/keys/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{INSIDE}/keys/kubelet.crt",
        "tlsPrivateKeyFile": f"{INSIDE}/keys/kubelet.key",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": DOMAIN,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        # Nothing outside of the cluster is reached from it, so there is no name to ask for.
        "resolvConf": "",
        "oomScoreAdj": 0,
        # By default it makes a folder in /usr, which is this machine's.
        "volumePluginDir": f"{INSIDE}/volume-plugins",
        # The disk is this machine's: a kubelet must not remove images because others fill it.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
    }


def proxy(worker: Worker, access: str) -> dict[str, Any]:
    """Configuration of kube-proxy."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": access},
        "hostnameOverride": worker.name,
        "clusterCIDR": str(PODS),
        "detectLocalMode": "ClusterCIDR",
        "mode": "nftables",
        "oomScoreAdj": 0,
        # The table's size is the kernel's, and one for all namespaces.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def as_json(value: object) -> str:
    """As a file has it; JSON is YAML."""
    return json.dumps(value, indent=1) + "\n"


def _answers(worker: Worker) -> bool:
    try:
        run_in(worker, "ctr", "version", timeout_s=10)
    except HostError:
        return False
    return True


def _nodes() -> dict[str, Any]:
    return {node["metadata"]["name"]: node for node in get("nodes")["items"]}


def _program(name: str) -> str:
    return str(BINARIES_INSIDE / name)
