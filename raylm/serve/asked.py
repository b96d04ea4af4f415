"""Asked: a request to a model. What all bodies have in common, and how they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import PydanticCustomError

from raylm.errors import RequestError, nearest
from raylm.serve.strict import Wire, is_same

B = TypeVar("B", bound=BaseModel)


class Asked(Wire):
    """A body that names a model."""

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields that are known and not supported, each with the values that ask for nothing."""
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Fields that are accepted because they change nothing about what is answered."""

    model: str = Field(min_length=1, max_length=256)
    variant: str | None = Field(None, min_length=1, max_length=256)
    """Which of the model's variants; None takes what the name says, or its default."""

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Validate a JSON object.

        Raises:
            RequestError: 400, naming the field.
        """
        kept = {name: value for name, value in fields.items() if not cls._asks_nothing(name, value)}
        return validated(cls, kept)

    @classmethod
    def _asks_nothing(cls, name: str, value: Any) -> bool:
        """Whether a field is one that is not supported, and harmless.

        Raises:
            RequestError: it asks for something.
        """
        if name not in cls.unsupported:
            return False
        if not any(is_same(value, neutral) for neutral in cls.unsupported[name]):
            raise RequestError(
                f"{name!r} is not supported by this server",
                code="unsupported-parameter",
                param=name,
            )
        return True


def clash(param: str, message: str) -> PydanticCustomError:
    """A field that is fine by itself and does not go with the others."""
    return PydanticCustomError("clash", "{message}", {"param": param, "message": message})


def validated(kind: type[B], fields: Mapping[str, Any]) -> B:
    """A JSON object as what it must be.

    Raises:
        RequestError: 400, naming the field.
    """
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        raise first_problem(error, kind) from None


def first_problem(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """What is wrong with a body, naming the field."""
    problem = error.errors(include_url=False)[0]
    param = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "clash":
        return RequestError(problem["msg"], code="invalid-parameter", param=problem["ctx"]["param"])
    if problem["type"] == "extra_forbidden":
        close = nearest(param, model.model_fields) if len(problem["loc"]) == 1 else None
        return RequestError(
            f"unknown field {param!r}" + (f"; did you mean {close!r}?" if close else ""),
            code="unknown-parameter",
            param=param,
        )
    if problem["type"] == "missing":
        return RequestError(f"{param!r} is missing", code="missing-parameter", param=param)
    message = problem["msg"].removeprefix("Value error, ")
    named = f"{param!r}: {message}" if param else message
    return RequestError(named, code="invalid-parameter", param=param or None)
