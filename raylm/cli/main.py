"""main: finds the command, runs it, and turns what goes wrong into a line and an exit code.

Imports next to nothing: typer alone takes seven times as long as starting Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import raylm
from raylm.cli.commands import COMMANDS, help_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = False
    while args and args[0].startswith("-"):
        option = args.pop(0)
        if option in ("--help", "-h"):
            return _print(help_text())
        if option in ("--version", "-V"):
            return _print(f"raylm {raylm.__version__}\n")
        if option != "--debug":
            return _usage(f"no such option: {option}", option, ["--help", "--version", "--debug"])
        debug = True
    if not args:
        return _print(help_text())
    name, *rest = args
    if name not in COMMANDS:
        return _usage(f"no such command: {name}", name, COMMANDS)
    # After the command too, where people add it.
    if "--debug" in rest:
        debug = True
        rest.remove("--debug")
    from raylm.cli.execute import execute

    return execute(name, rest, debug=debug)


def _print(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # `raylm --help | head -1`: nobody reads on, and Python must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _usage(message: str, name: str, known: Sequence[str] | dict[str, tuple[str, str]]) -> int:
    from raylm.errors import nearest

    close = nearest(name, known)
    hint = f"did you mean {close!r}?" if close else "`raylm --help` lists what there is"
    sys.stderr.write(f"error[usage]: {message}\nhint: {hint}\n")
    return 2
