"""A client of Ray that does not let go keeps no command from ending."""

from __future__ import annotations

import subprocess
import sys

STUCK = """
import sys, threading
import ray
from ray._private import worker

ray.shutdown = worker.shutdown = threading.Event().wait
worker.atexit.register(ray.shutdown)
from raylm.deploy.connect import _shutdown

_shutdown(0.2)
print("went on")
"""


def test_a_disconnection_that_never_ends_is_left() -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
