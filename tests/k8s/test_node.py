import json
import tomllib

from k8s.local import control_plane, node
from k8s.local.plan import PODS, SERVICES, WORKERS


def test_nodes_give_pods_addresses_of_their_own_part() -> None:
    subnets = []
    for worker in WORKERS:
        first, second = node.cni(worker)["plugins"]
        assert (first["type"], second["type"]) == ("ptp", "portmap")
        # Masked addresses would hide from a NetworkPolicy who speaks.
        assert first["ipMasq"] is False
        subnets.append(first["ipam"]["ranges"][0][0]["subnet"])
    assert subnets == [str(worker.pods) for worker in WORKERS]


def test_containerd_finds_the_pause_image_that_is_built_here() -> None:
    plugin = tomllib.loads(node.containerd())["plugins"]["io.containerd.grpc.v1.cri"]
    assert plugin["sandbox_image"] == node.PAUSE_IMAGE
    assert plugin["restrict_oom_score_adj"] is True
    runc = plugin["containerd"]["runtimes"]["runc"]
    assert runc["runtime_type"] == "io.containerd.runc.v2"
    assert runc["options"]["SystemdCgroup"] is False


def test_a_kubelet_stays_in_its_control_groups_and_lets_nobody_in_unknown() -> None:
    config = json.loads(node.as_json(node.kubelet("/raylm-k8s/node-1")))
    assert config["cgroupRoot"] == "/raylm-k8s/node-1"
    assert config["cgroupDriver"] == "cgroupfs"
    assert config["authentication"]["anonymous"]["enabled"] is False
    assert config["authorization"]["mode"] == "Webhook"
    assert config["clusterDNS"] == ["10.233.0.10"]


def test_the_proxy_touches_no_setting_of_the_whole_kernel() -> None:
    config = node.proxy(WORKERS[0], "/x")
    assert config["mode"] == "nftables"
    assert config["conntrack"] == {"maxPerCore": 0, "min": 0}
    assert config["clusterCIDR"] == str(PODS)


def test_the_control_plane_agrees_on_networks_and_keys() -> None:
    server, manager = control_plane.api_server(), control_plane.controller_manager()
    assert f"--service-cluster-ip-range={SERVICES}" in server
    assert f"--cluster-cidr={PODS}" in manager
    assert "--service-account-signing-key-file=/var/lib/raylm/keys/accounts.key" in server
    assert "--service-account-private-key-file=/var/lib/raylm/keys/accounts.key" in manager
    assert "--authorization-mode=Node,RBAC" in server


def test_etcd_listens_on_loopback_only() -> None:
    listens = [word for word in control_plane.etcd() if word.startswith("--listen")]
    assert len(listens) == 2
    assert all("://127.0.0.1:" in word for word in listens)
