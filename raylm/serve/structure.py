"""Structured output: the fields of a request that say what its answer must look like."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from raylm.engine.protocol import Grammar
from raylm.errors import RequestError
from raylm.serve.strict import Wire


class JsonSchema(Wire):
    """`response_format.json_schema`. What is made always follows it, whatever `strict` says."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Wire):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") is not (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type 'json_schema', and to no other")
        return self

    def grammar(self) -> Grammar | None:
        """What it asks of the answer."""
        if self.json_schema is not None:
            return Grammar("json_schema", json.dumps(self.json_schema.schema_))
        return Grammar("json_object") if self.type == "json_object" else None


def _schema_text(value: Any) -> Any:
    """vLLM takes a schema as an object and as text."""
    return json.dumps(value) if isinstance(value, dict) else value


class Structured(Wire):
    """The fields themselves: OpenAI's, and vLLM's names for what OpenAI has not."""

    response_format: ResponseFormat | None = None
    guided_json: Annotated[
        str | None,
        BeforeValidator(_schema_text, json_schema_input_type=str | dict[str, Any] | None),
    ] = None
    guided_regex: str | None = None
    guided_grammar: str | None = None

    def grammar(self) -> Grammar | None:
        """The grammar that the answer must follow, if one is asked for.

        Raises:
            RequestError: two are.
        """
        found = [] if self.response_format is None else [self.response_format.grammar()]
        if self.guided_json is not None:
            found.append(Grammar("json_schema", self.guided_json, "guided_json"))
        if self.guided_regex is not None:
            found.append(Grammar("regex", self.guided_regex, "guided_regex"))
        if self.guided_grammar is not None:
            found.append(Grammar("lark", self.guided_grammar, "guided_grammar"))
        asked = [grammar for grammar in found if grammar is not None]
        if len(asked) > 1:
            raise RequestError(
                f"{asked[0].param!r} and {asked[1].param!r} exclude each other",
                code="invalid-parameter",
                param=asked[1].param,
            )
        return asked[0] if asked else None
