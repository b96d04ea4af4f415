"""Guardian: a small process beside a private cluster that ends it when the driver is killed.

Ray's processes share the fate of the driver that started them, mostly: one that was being
started when the driver got SIGKILL can be left over. The guardian waits for the end of a pipe
that only the driver holds, then ends what still has the cluster's mark.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from raylm.deploy import owned

FATE_SHARING_S = 5.0
"""What Ray's processes get to end by themselves once their driver is gone."""


@contextmanager
def guardian(cluster_id: str) -> Iterator[None]:
    """Keep a guardian for what has this mark."""
    # A session of its own: Ctrl-C is the driver's. Without the mark: it does not end itself.
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, cluster_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != owned.MARK},
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def main() -> None:
    """Wait for the driver's end, then for the cluster's, and help it along."""
    sys.stdin.buffer.read()
    owned.stop_late(lambda: owned.marked(owned.MARK, sys.argv[1]), patience_s=FATE_SHARING_S)


if __name__ == "__main__":
    main()
