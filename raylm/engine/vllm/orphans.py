"""vLLM's processes end with the replica that started them, however that ends.

vLLM's workers watch its core, and nobody the process that started the core: killed with SIGKILL,
it would leave both behind, with the GPU's memory. A process of its own waits for that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

_WAIT = """
import os, signal, sys
held = []
for pid in map(int, sys.argv[1:]):
    try:
        held.append(os.pidfd_open(pid))  # stands for this process, whoever has its number later
    except ProcessLookupError:
        pass
print(flush=True)
sys.stdin.read()
for process in held:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
JOIN_S = 10.0


class Guard:
    """Kills some processes when this one is gone, or when it is told to."""

    def __init__(self, pids: Iterable[int]) -> None:
        # A session of its own: a Ctrl-C is not for it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WAIT, *map(str, pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it holds them

    def close(self) -> None:
        """Kill what is left of them now."""
        self._process.communicate(timeout=JOIN_S)
