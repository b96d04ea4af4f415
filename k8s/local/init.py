"""The first process of a machine: it makes the machine's own view of the files, and reaps.

Run as `python -I init.py NAME FOLDER BINARIES` in fresh mount, pid and uts namespaces. When it
dies the kernel kills all that runs in the machine, pods too, and takes the mounts away.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

KERNEL_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""What a kubelet sets for the whole machine. Here it finds them set, in files of its own: they
belong to the kernel, which is not the cluster's."""


def main(name: str, folder: Path, binaries: Path) -> None:
    """Make the machine's files, say so by the file `ready`, and stay."""
    socket.sethostname(name)
    own = folder / "lib" / "raylm"
    _mount("--bind", str(binaries), str(own / "bin"))
    _mount("--bind", str(folder / "log"), "/var/log")
    _mount("--rbind", str(folder / "lib"), "/var/lib")  # the folder itself lies below it
    _unmount_below("/run")
    _mount("-t", "tmpfs", "-o", "mode=0755", "run", "/run")
    for setting, value in KERNEL_SETTINGS.items():
        shown = Path("/var/lib/raylm", setting.replace("/", "."))
        shown.write_text(f"{value}\n")
        _mount("--bind", str(shown), f"/proc/sys/{setting}")
    _mount("--make-rshared", "/")
    Path("/var/lib/raylm/ready").touch()
    _reap()


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, timeout=30)


def _unmount_below(folder: str) -> None:
    """Let go of what is mounted there: others' network namespaces would stay while this lives."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    for point in reversed([point for point in points if point.startswith(f"{folder}/")]):
        subprocess.run(["umount", "--lazy", point], check=True, timeout=30)


def _reap() -> None:
    # Blocked before and waited for here, so that no child's end is missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        signal.sigtimedwait({signal.SIGCHLD}, 60)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
