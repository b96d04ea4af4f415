"""What clients send to create a file or a batch, strictly typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from raylm.errors import RequestError
from raylm.serve.asked import validated
from raylm.serve.strict import Wire

MIN_KEEP_S = 3600
MAX_KEEP_S = 2_592_000


class ExpiresAfter(Wire):
    """How long a file is kept: an hour to thirty days, as OpenAI has it."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_KEEP_S, le=MAX_KEEP_S)


Answered = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"]
"""The paths whose requests batches are made of."""


class BatchBody(Wire):
    """POST /v1/batches."""

    input_file_id: str = Field(min_length=1, max_length=64)
    endpoint: Answered
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None

    def keep_outputs_s(self, most_s: float) -> float:
        """How long the answers are kept."""
        asked = self.output_expires_after
        return most_s if asked is None else min(most_s, float(asked.seconds))


def keep_s(fields: Mapping[str, str], most_s: float) -> float:
    """How long an uploaded file is kept, from the fields of its form.

    Raises:
        RequestError: 400, they are not those of a file of requests.
    """
    expires = {"expires_after[anchor]": "anchor", "expires_after[seconds]": "seconds"}
    for name in fields:
        if name != "purpose" and name not in expires:
            raise RequestError(f"unknown field {name!r}", code="unknown-parameter", param=name)
    purpose = fields.get("purpose")
    if purpose is None:
        raise RequestError("'purpose' is missing", code="missing-parameter", param="purpose")
    if purpose != "batch":
        raise RequestError(
            f"purpose is {purpose!r}; this server takes files for 'batch'",
            code="invalid-parameter",
            param="purpose",
        )
    asked: dict[str, Any] = {expires[name]: fields[name] for name in fields if name in expires}
    if not asked:
        return most_s
    if str(asked.get("seconds", "")).isdecimal():
        asked["seconds"] = int(asked["seconds"])
    return min(most_s, float(validated(ExpiresAfter, asked).seconds))
