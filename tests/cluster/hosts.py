"""Hosts: namespaces of this machine that are to each other as machines are.

Each has processes, a name, an address and a /tmp/ray of its own, so that `ray stop`, which ends all
it finds, finds its own alone. They share the file system. All ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.local import network

# First what is mounted, then a sign that it is, then nothing until the end but what a first process
# has to do, and bash does: `ray stop` waits for processes until their parent has taken note.
_INIT = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mkdir -p /tmp/ray /var/tmp
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs tmpfs /var/tmp
mount -t tmpfs tmpfs /run
touch "$2/$1.up"
trap : TERM
while true; do sleep 3600 & wait; done
"""


@dataclass(slots=True)
class Host:
    """One of them."""

    name: str
    address: str
    namespace: str
    holder: subprocess.Popen[bytes]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, words: Sequence[str]) -> list[str]:
        """A command as it is run on the host."""
        return ["nsenter", f"--target={self._init()}", "--mount", "--pid", "--uts", "--net", *words]

    def run(
        self, *words: str, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(words), capture_output=True, text=True, timeout=timeout_s, check=False,
            env=None if env is None else dict(env),
        )  # fmt: skip

    def start(self, *words: str, env: Mapping[str, str], log: Path) -> None:
        """Start what runs as long as the host."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.command(words), stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                env=dict(env),
            )  # fmt: skip
        self.started.append(process)

    def _init(self) -> int:
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text()
        return int(children.split()[0])

    def end(self) -> None:
        """End all its processes: their first one takes the others with it."""
        self.holder.kill()
        for process in (self.holder, *self.started):
            process.wait(30)


@contextlib.contextmanager
def hosts(num: int, folder: Path) -> Iterator[list[Host]]:
    """Hosts `host0`, `host1`, ... that know each other by name; `folder` is for their files."""
    if not (network.may_isolate() and shutil.which("unshare")):
        pytest.skip("needs root, iproute2, nsenter and unshare")
    # Not of eight characters, which are those of `cluster.local`.
    made = f"host{os.urandom(3).hex()}"
    found: list[Host] = []
    try:
        subnet = network.make_switch(made)
        addresses = [f"{subnet}.{network.FIRST_HOST + i}" for i in range(num)]
        lines = [f"{address} host{i}\n" for i, address in enumerate(addresses)]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        for i, address in enumerate(addresses):
            network.plug_in(made, i, address)
            namespace = network.node_namespace(made, i)
            # A test that is killed takes them with it.
            words = [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--pid",
                "--uts",
                "--fork",
                "--mount-proc",
            ]
            words += ["--kill-child=SIGKILL", "bash", "-c", _INIT, "init", f"host{i}", str(folder)]
            holder = subprocess.Popen(network.inside(namespace, words))
            found.append(Host(f"host{i}", address, namespace, holder))
        deadline_s = time.monotonic() + 30
        while not all((folder / f"{host.name}.up").exists() for host in found):
            assert all(host.holder.poll() is None for host in found)
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        yield found
    finally:
        for host in found:
            host.end()
        network.remove(made)
        for name in [*(host.namespace for host in found), f"raylm-{made}-sw"]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
