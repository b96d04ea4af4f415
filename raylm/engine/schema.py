"""Which JSON schemas can be enforced: every keyword is, or the schema is refused by its name.

The compiler refuses keywords that it knows and does not enforce, but overlooks those that it
does not know: a misspelled `required` would be lost in silence. JSON Schema 2020-12.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from raylm.errors import nearest

_SCHEMA = frozenset({"additionalProperties", "items", "additionalItems"})
_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_ENFORCED = _SCHEMA | _SCHEMAS | _NAMED_SCHEMAS
_ENFORCED |= {"$ref", "const", "enum", "type", "minItems", "maxItems", "required"}
_ENFORCED |= {"minProperties", "maxProperties", "minLength", "maxLength", "pattern", "format"}
_ENFORCED |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_NOTES = frozenset(
    {"$schema", "$id", "$anchor", "$comment", "title", "description", "default", "examples"}
    | {"example", "deprecated", "readOnly", "writeOnly", "contentMediaType", "contentEncoding"}
    # OpenAPI's hint at which branch of a `oneOf` holds; the branches say it themselves.
    | {"discriminator"}
)
"""Keywords that say nothing about which values are valid."""


def read_schema(source: str) -> dict[str, Any]:
    """A schema from its JSON text.

    Raises:
        ValueError: it is no JSON object, or has a keyword that cannot be enforced.
    """
    try:
        schema = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError("the schema must be a JSON object")
    check_schema(schema)
    return schema


def check_schema(schema: dict[str, Any]) -> None:
    """See that every keyword of a schema is enforced.

    Raises:
        ValueError: one is not; with its name and place.
    """
    pending = [("#", schema)]
    while pending:
        path, part = pending.pop()
        _check_keywords(path, part)
        pending += _parts(path, part)


def _check_keywords(path: str, schema: dict[str, Any]) -> None:
    for keyword in schema:
        if keyword not in _ENFORCED and keyword not in _NOTES:
            close = nearest(keyword, _ENFORCED)
            hint = f"; did you mean {close!r}?" if close else ""
            raise ValueError(f"the keyword {keyword!r} at {path} is not supported{hint}")


def _parts(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas within a schema; what is malformed is left to the compiler."""
    for keyword, value in schema.items():
        inner: list[tuple[str, Any]] = []
        if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
            inner = [(f"{path}/{keyword}/{name}", part) for name, part in value.items()]
        elif keyword in _SCHEMA or keyword in _SCHEMAS:
            values = value if isinstance(value, list) else [value]
            inner = [(f"{path}/{keyword}", part) for part in values]
        yield from ((where, part) for where, part in inner if isinstance(part, dict))
