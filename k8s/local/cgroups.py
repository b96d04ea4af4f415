"""Pods' control groups: a subtree for each node, since a kubelet removes what it does not know."""

from __future__ import annotations

import os
from pathlib import Path

from k8s.local.plan import CGROUP, Machine
from k8s.local.processes import wait_until

_ROOT = Path("/sys/fs/cgroup")
_REMOVED_S = 30.0
_INHERITED = ("cpuset.cpus", "cpuset.mems")


def make(machine: Machine) -> str:
    """Make a node's subtree in every hierarchy; returns its name below their roots."""
    name = f"{CGROUP}/{machine.name}"
    for hierarchy in hierarchies(_ROOT):
        for path in (hierarchy / CGROUP, hierarchy / name):
            path.mkdir(exist_ok=True)
            _prepare(path)
    return f"/{name}"


def hierarchies(root: Path) -> list[Path]:
    """Where control groups are mounted: one place (version 2), or one for each controller."""
    if (root / "cgroup.controllers").exists():
        return [root]
    # Some are there twice, as links with another name.
    return sorted({path.resolve() for path in root.iterdir() if path.is_dir()})


def processes() -> list[int]:
    """Processes in any of them."""
    found: set[int] = set()
    for path in _trees():
        for folder, _, _ in os.walk(path):
            found.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
    return sorted(found)


def remove() -> None:
    """Remove all of them; a group stays for a moment after its last process has ended."""
    wait_until("the end of the control groups", _is_removed, _REMOVED_S)


def remain() -> list[Path]:
    """Subtrees that are there."""
    return _trees()


def _is_removed() -> bool:
    for path in _trees():
        for folder, _, _ in os.walk(path, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                return False
    return True


def _trees() -> list[Path]:
    return [path / CGROUP for path in hierarchies(_ROOT) if (path / CGROUP).is_dir()]


def _prepare(path: Path) -> None:
    """What a new group must have before others can be made in it."""
    for name in _INHERITED:  # version 1: empty until set
        file = path / name
        if file.exists() and not file.read_text().strip():
            file.write_text((path.parent / name).read_text())
    control = path / "cgroup.subtree_control"
    if control.exists() and (path / "cgroup.controllers").read_text().strip():
        wanted = (path / "cgroup.controllers").read_text().split()
        control.write_text(" ".join(f"+{name}" for name in wanted))
