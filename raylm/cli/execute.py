"""execute: one command, its signals and its errors."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from importlib import import_module
from types import FrameType
from typing import Any

import typer

from raylm.cli.commands import COMMANDS
from raylm.errors import HostError, RaylmError

INTERRUPTED, TERMINATED, BROKEN_PIPE = 130, 143, 141


def execute(name: str, args: list[str], *, debug: bool) -> int:
    """Run a command; returns the exit code, and prints the error if there was one."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _invoke(name, args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:
        # Who reads our output has had enough. Python must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explain(name, error)
    finally:
        signal.signal(signal.SIGTERM, before)


def load(name: str) -> Any:
    """The click command behind a name."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
        found.command(name)(function)
    return typer.main.get_command(found)


def _invoke(name: str, args: list[str]) -> int:
    command = load(name)
    # A group by itself shows what it has.
    if not args and hasattr(command, "commands"):
        args = ["--help"]
    try:
        with command.make_context(f"raylm {name}", args) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _explain(name: str, error: Exception) -> int:
    # A task's error comes back from Ray as a mixture of its class and Ray's.
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, Exception) else error
    if isinstance(error, RaylmError):
        _say(f"error[{error.code}]: {error.message}", error.hint)
        return error.exit_code
    if isinstance(error, typer.TyperException):
        _say(f"error[usage]: {error.format_message()}", _usage_hint(name, error))
        return 2
    if isinstance(error, typer.Abort):
        _say("aborted")
        return 1
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        _say(f"error[system]: {place}{error.strerror}", f"`raylm --debug {name} ...` shows where")
        return HostError.exit_code
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    _say(f"error[unexpected]: {what}", f"`raylm --debug {name} ...` shows where; please report it")
    return 1


def _usage_hint(name: str, error: typer.TyperException) -> str:
    # The message itself offers the nearest name.
    context: Any = getattr(error, "ctx", None)
    return f"`{context.command_path if context else f'raylm {name}'} --help`"


def _say(line: str, hint: str | None = None) -> None:
    sys.stderr.write(line + "\n" + (f"hint: {hint}\n" if hint else ""))
    sys.stderr.flush()


def _terminate(number: int, frame: FrameType | None) -> None:
    # As Ctrl-C does: everything on the stack gets to clean up.
    sys.exit(TERMINATED)
