"""What the machine must have: root, and Debian's packages of what is not built here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from k8s.local.command import environment
from raylm.errors import HostError

_PROGRAMS = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "nft": "nftables",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "gcc": "gcc",
    "go": "golang",
}
_FILES = {  # below /usr/lib
    "cni/ptp": "containernetworking-plugins",
    "*-linux-gnu/libc.a": "libc6-dev",
}
PACKAGES = sorted({*_PROGRAMS.values(), *_FILES.values()})


class NotHere(HostError):
    """This machine cannot have a cluster, which is no failure of anything: callers skip."""


def check() -> None:
    """Return if a cluster can be made here.

    Raises:
        NotHere: not root, or packages are missing; it names them.
    """
    if os.geteuid() != 0:
        raise NotHere("a cluster on this machine needs root", code="k8s-not-root")
    missing = missing_packages()
    if missing:
        raise NotHere(
            f"packages are missing: {' '.join(missing)}",
            code="k8s-packages",
            hint=f"apt-get install -y --no-install-recommends {' '.join(missing)}",
        )


def missing_packages() -> list[str]:
    """Debian's names of the packages that are not installed."""
    path = environment()["PATH"]
    programs = {name for program, name in _PROGRAMS.items() if not shutil.which(program, path=path)}
    files = {name for file, name in _FILES.items() if not any(Path("/usr/lib").glob(file))}
    return sorted(programs | files)
