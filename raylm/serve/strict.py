"""Strict pieces of request bodies: the base of all of them, and what several share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema


class Wire(BaseModel):
    """A strict, frozen piece of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def is_list(value: Any) -> bool:
    """A JSON array."""
    return isinstance(value, list)


def as_tuple(value: Any) -> Any:
    """A JSON array as a tuple, null as an empty one; anything else is left to its field."""
    return () if value is None else tuple(value) if is_list(value) else value


NOTHING: tuple[Any, ...] = (None, [], {}, "")
"""The values by which clients leave a field unset."""


def is_same(value: Any, other: Any) -> bool:
    """Equal, and true is not 1."""
    return type(value) is type(other) and bool(value == other)


def _only_empty(value: Any) -> None:
    if not any(is_same(value, empty) for empty in NOTHING):
        raise ValueError("is not supported by this server")


Empty = Annotated[None, BeforeValidator(_only_empty), WithJsonSchema({"enum": [*NOTHING]})]
"""A known field that must ask for nothing."""
