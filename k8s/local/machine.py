"""A machine: a network of its own, files of its own, and a first process that holds the rest.

Killing that process kills the machine, as if it lost power: what runs in it lives in its pid
namespace, pods included. So nothing can be left that would have to be found one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from k8s.local import network
from k8s.local.command import run
from k8s.local.layout import INSIDE, config_folder, machine_folder
from k8s.local.plan import Machine
from k8s.local.processes import only_child, record, recorded, spawn, wait_until
from raylm.errors import HostError

_INIT = Path(__file__).with_name("init.py")
_READY_S = 30.0


def make(machine: Machine, binaries: Path) -> None:
    """Start a machine whose network is there already.

    Raises:
        HostError: the kernel refuses a namespace or a mount.
    """
    folder = machine_folder(machine)
    for name in ("lib/raylm/bin", "log"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    name = f"{machine.name}.init"
    holder = spawn(
        name,
        [
            *network.enter(machine),
            "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
            "--mount-proc", sys.executable, "-I", str(_INIT), machine.name, str(folder),
            str(binaries),
        ],
    )  # fmt: skip
    ready = config_folder(machine) / "ready"
    wait_until(f"machine {machine.name}", ready.exists, _READY_S, dies_with=(name, holder))
    record(name, only_child(holder, name))


def start(machine: Machine, name: str, argv: list[str]) -> subprocess.Popen[bytes]:
    """Start a process in a machine; returns the one that waits for it on this machine."""
    full = f"{machine.name}.{name}"
    waiting = spawn(full, [*_enter(machine), *argv])
    record(full, only_child(waiting, full))
    return waiting


def run_in(
    machine: Machine, *argv: str, timeout_s: float = 60.0, file_in: Path | None = None
) -> str:
    """Run a command in a machine to its end; returns its stdout."""
    if file_in is None:
        return run(*_enter(machine), *argv, timeout_s=timeout_s)
    with file_in.open("rb") as stream:
        return run(*_enter(machine), *argv, timeout_s=timeout_s, file_in=stream)


def give(machine: Machine, name: str, content: str | bytes) -> str:
    """Write a file that only root may read; returns its path as the machine sees it."""
    path = config_folder(machine) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    with open(path, "wb", opener=_private) as file:
        file.write(data)
    return str(INSIDE / name)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _enter(machine: Machine) -> list[str]:
    pid = recorded(f"{machine.name}.init")
    if pid is None:
        raise HostError(f"the machine {machine.name} does not run", code="k8s-machine")
    kinds = ("--mount", "--uts", "--ipc", "--net", "--pid")
    return ["nsenter", f"--target={pid}", *kinds, "--wd=/", "--"]
