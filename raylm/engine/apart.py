"""Offline steps that run in a process of their own: a model's files are read and written there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from raylm.errors import ModelError, RaylmError

LIMIT_S = 3600.0
"""Minutes are enough for the largest model on a slow disk; what takes longer hangs."""


def run_apart(module: str, arguments: Sequence[Path], *, what: str, code: str) -> None:
    """Run `python -m module arguments` to its end.

    Raises:
        ModelError: it failed, with its own reason (see `ended`), or with its last line and `code`;
            or it did not end.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{what} did not end within {LIMIT_S:.0f} s", code=code) from None
    if done.returncode == 0:
        return
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    try:
        found = json.loads(lines[-1])
        raise ModelError(found["message"], code=found["code"], hint=found["hint"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{what} ended with: {lines[-1]}", code=code) from None


def ended(work: Callable[[], None]) -> int:
    """Do the work of such a process, and tell its exit code.

    An error is one line of JSON on stderr, for the process that waits.
    """
    try:
        work()
    except RaylmError as error:
        facts = {"code": error.code, "message": error.message, "hint": error.hint}
        sys.stderr.write(json.dumps(facts) + "\n")
        return error.exit_code
    return 0
