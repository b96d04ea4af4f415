"""Tables of names that stand for import paths, so that plug-ins are found by grep.

A registry imports nothing until a name is asked for. Packages outside raylm add names
through the entry-point group `raylm.<kind>` (value: `module:attribute`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from raylm.errors import ConfigError, nearest


class Registry:
    """Names of one kind of thing and the import path of each."""

    def __init__(self, kind: str, table: Mapping[str, str]) -> None:
        self.kind = kind
        self._table = dict(table)

    def names(self) -> list[str]:
        """All known names, those of installed plug-ins included."""
        return sorted({**self._plugins(), **self._table})

    def path(self, name: str) -> str:
        """The `module:attribute` behind a name.

        Raises:
            ConfigError: the name is not known; the nearest one is offered.
        """
        path = self._table.get(name) or self._plugins().get(name)
        if path is None:
            close = nearest(name, self.names())
            raise ConfigError(
                f"unknown {self.kind} {name!r}; known: {', '.join(self.names())}",
                code=f"unknown-{self.kind}",
                hint=f"did you mean {close!r}?" if close else None,
            )
        return path

    def load(self, name: str) -> Any:
        """Import and return what a name stands for."""
        module, _, attribute = self.path(name).partition(":")
        return getattr(import_module(module), attribute)

    def _plugins(self) -> dict[str, str]:
        return {p.name: p.value for p in entry_points(group=f"raylm.{self.kind}")}
