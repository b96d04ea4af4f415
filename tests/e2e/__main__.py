"""`make e2e`: all of it, or a loud line where this machine cannot have a cluster."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from k8s.local import requirements
from k8s.local.stages import say


def main(arguments: list[str]) -> int:
    """Run the tests, with the times of their stages; the exit code is pytest's."""
    context = os.environ.get("RAYLM_E2E_CONTEXT")
    if not context:
        try:
            requirements.check()
        except requirements.NotHere as error:
            say(f"SKIPPED: e2e: {error.message}")
            say(f"hint: {error.hint or 'as root, or with CONTEXT=NAME on another cluster'}")
            return 0
    start_s = time.monotonic()
    words = ["-m", "e2e", "-s", "-v", "--durations=0", *arguments]
    # The cluster's own tests make and remove one: not on somebody else's.
    own = ["--ignore", str(Path(__file__).with_name("test_local_cluster.py"))] if context else []
    status = int(pytest.main([*words, *own, str(Path(__file__).parent)]))
    say(f"e2e in {(time.monotonic() - start_s) / 60:.1f} min")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
