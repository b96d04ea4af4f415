"""What a cluster could leave on a machine, as far as the kernel tells."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "net/ipv4/ip_forward",
    "net/netfilter/nf_conntrack_max",
)
_CLUSTER_PROGRAMS = (
    "etcd", "kube-apiserver", "kube-controller", "kube-scheduler", "kubelet", "kube-proxy",
    "networkpolicy", "containerd", "containerd-shim", "coredns", "manager", "pause",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MachineState:
    """Sets of names, and the texts of the kernel's tables."""

    links: frozenset[str]
    routes: frozenset[str]
    rules: str
    settings: tuple[str, ...]
    folders: frozenset[str]
    processes: frozenset[str]
    mounts: frozenset[str]

    @classmethod
    def now(cls) -> MachineState:
        """Read it."""
        links = json.loads(_run("ip", "-json", "link"))
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return cls(
            links=frozenset(link["ifname"] for link in links),
            routes=frozenset(_run("ip", "-4", "route", "show", "table", "all").splitlines()),
            rules=_run("nft", "list", "tables") + _run("iptables-save"),
            settings=tuple(_setting(name) for name in _SETTINGS),
            folders=frozenset(_folders()),
            processes=frozenset(_processes()),
            mounts=frozenset(line.split()[4] for line in lines),
        )


def _setting(name: str) -> str:
    path = Path("/proc/sys", name)
    return f"{name}={path.read_text().strip()}" if path.exists() else name


def _folders() -> list[str]:
    """Where programs of a cluster keep things by default, with what is there."""
    found: list[str] = []
    for pattern in (
        "/run/netns/cni-*", "/run/netns/raylm-k8s-*", "/run/containerd/**/*",
        "/run/xtables.lock",
        "/var/lib/cni/**/*", "/var/lib/kubelet/*", "/var/lib/containerd/*", "/var/lib/raylm*",
        "/var/log/pods/*", "/var/log/containers/*", "/etc/cni/net.d/*",
        "/usr/libexec/kubernetes/**/*",
    ):  # fmt: skip
        found += map(str, Path("/").glob(pattern.removeprefix("/")))
    for hierarchy in Path("/sys/fs/cgroup").glob("*"):
        found += map(str, hierarchy.glob("*raylm*"))
        found += map(str, hierarchy.glob("*kubepods*"))
    return found


def _processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "comm").read_text().strip()
            ended = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if name.startswith(_CLUSTER_PROGRAMS) and not ended:
            found.append(f"{path.name} {name}")
    return found


def _run(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
