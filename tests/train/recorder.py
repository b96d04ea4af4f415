"""What a save does to the disk, in order, and a kill before any of it.

The functions that change the disk are wrapped, so that what is recorded is what a save does, not
what a test believes that it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SAVE = 2
"""The save that is recorded and killed, from 1."""


class Recorder:
    """Notes each change of the disk that this rank makes in a save, and may kill before one."""

    def __init__(self, work: Path, kill_at: int | None, kill: Callable[[], None]) -> None:
        self.trace: list[str] = []
        self.is_on = False
        self._work, self._kill_at, self._kill = work, kill_at, kill

    def event(self, what: str, path: object = "") -> None:
        folder = f"{self._work}/checkpoints"
        # A rank's signs of life are written meanwhile, whenever they are due.
        is_elsewhere = os.path.isabs(str(path)) and not str(path).startswith(folder)
        if not self.is_on or is_elsewhere:
            return
        if len(self.trace) == self._kill_at:
            self._kill()
        name = str(path).removeprefix(folder).removeprefix("/")
        self.trace.append(f"{what} {name}".strip())

    def install(self) -> None:
        import torch

        from raylm.train import generators
        from raylm.train.checkpoint import Checkpointer

        for name in ("mkdir", "rename", "unlink", "rmdir"):
            self._wrap(os, name, lambda path, *_: str(path))
        self._wrap(os, "fsync", lambda number: os.readlink(f"/proc/self/fd/{number}"))
        # A file that is being written has its first half, and then all of it.
        self._wrap_writer(torch, "save", lambda args: args[1])
        self._wrap_writer(generators, "save_array", lambda args: args[0])
        save, calls = Checkpointer.save, [0]

        def recorded(*args: Any, **options: Any) -> Path:
            calls[0] += 1
            self.is_on = calls[0] == SAVE
            found = save(*args, **options)
            self.event("saved")
            self.is_on = False
            return found

        Checkpointer.save = recorded  # type: ignore[method-assign]

    def _wrap(self, place: Any, name: str, path: Callable[..., str]) -> None:
        real = getattr(place, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self.event(name, path(*args))
            return real(*args, **options)

        setattr(place, name, wrapped)

    def _wrap_writer(self, place: Any, name: str, path: Callable[[tuple[Any, ...]], Any]) -> None:
        real = getattr(place, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self.event("write", path(args))
            found = real(*args, **options)
            if self.is_on and len(self.trace) == self._kill_at:
                file = path(args)
                os.truncate(file, os.path.getsize(file) // 2)
            self.event("half", path(args))
            return found

        setattr(place, name, wrapped)
