"""The base of every config section, and the mark for values that do not change results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class OutsideKey:
    """Marks a field that says where or how fast, never what: workers, paths, ports, logs."""


OUTSIDE_KEY = OutsideKey()


class Section(BaseModel):
    """A strict, frozen part of the configuration; attribute docstrings describe the keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

    def key(self) -> dict[str, Any]:
        """What of this section decides the result of a stage, as plain JSON values."""
        found: dict[str, Any] = {}
        dumped = self.model_dump(mode="json")
        for name, info in type(self).model_fields.items():
            if any(isinstance(mark, OutsideKey) for mark in info.metadata):
                continue
            value = getattr(self, name)
            found[name] = value.key() if isinstance(value, Section) else dumped[name]
        return found
