"""`raylm deploy`, as one calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def deploy(*words: str | Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run it to the end."""
    command = [sys.executable, "-m", "raylm", "deploy", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def status(file: Path) -> dict[str, Any]:
    """What `raylm deploy status` says."""
    done = deploy("status", "-c", file, "-o", "json")
    assert done.returncode in (0, 1), done.stderr
    return dict(json.loads(done.stdout))
