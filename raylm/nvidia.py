"""What NVIDIA's driver tells of the GPUs of this machine."""

from __future__ import annotations

import shutil
import subprocess


def query_gpus(fields: str, *, units: bool = False) -> list[str]:
    """A line of `nvidia-smi --query-gpu` for each GPU; empty where there is no such tool.

    Raises:
        OSError, subprocess.SubprocessError: the tool is there, and fails.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    done = subprocess.run(
        [tool, f"--query-gpu={fields}", f"--format=csv,noheader{'' if units else ',nounits'}"],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
