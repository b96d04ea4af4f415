"""Run a command of this machine, with a deadline and an error that tells the cause."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import IO

from raylm.errors import HostError

_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
_GO = "/usr/local/go/bin"
COMMAND_S = 60.0
"""For what should take a second."""
_LATE = "k8s-late"


def environment() -> dict[str, str]:
    """This process's, with the folders where programs for root lie in its path."""
    path = os.environ.get("PATH", "").split(os.pathsep)
    more = [folder for folder in (*_PATHS, _GO) if folder not in path]
    return {**os.environ, "PATH": os.pathsep.join([*path, *more]).strip(os.pathsep)}


def run(
    *words: str | Path,
    timeout_s: float = COMMAND_S,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    text_in: str | None = None,
    file_in: IO[bytes] | None = None,
) -> str:
    """Run to the end; returns what was written to stdout.

    Raises:
        HostError: `k8s-command`, with the last lines of its stderr; `k8s-late`.
    """
    done = _run(words, timeout_s, cwd, env, text_in, file_in)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-12:]
        raise HostError(
            f"{_short(words)} ended with {done.returncode}: " + "\n".join(lines),
            code="k8s-command",
        )
    return done.stdout


def succeeds(*words: str | Path, timeout_s: float = COMMAND_S) -> bool:
    """Whether a command ends with 0, and in time."""
    try:
        return _run(words, timeout_s, None, None, None, None).returncode == 0
    except HostError as error:
        if error.code != _LATE:
            raise
        return False


def _run(
    words: tuple[str | Path, ...],
    timeout_s: float,
    cwd: Path | None,
    env: dict[str, str] | None,
    text_in: str | None,
    file_in: IO[bytes] | None,
) -> subprocess.CompletedProcess[str]:
    try:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.PIPE if text_in is not None else file_in or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**environment(), **(env or {})},
        )
    except FileNotFoundError as error:
        raise HostError(f"{words[0]}: {error}", code="k8s-command") from error
    with process:
        try:
            out, err = process.communicate(text_in, timeout=timeout_s)
        except BaseException as error:
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise HostError(
                f"{_short(words)} did not end within {timeout_s:.0f} s", code=_LATE
            ) from error
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _short(words: tuple[str | Path, ...]) -> str:
    line = " ".join(str(word) for word in words)
    return line if len(line) < 160 else f"{line[:157]}..."
