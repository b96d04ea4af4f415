"""What answers about files and batches look like, and the form of a file, for the document of the
API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, WithJsonSchema

from raylm.serve.batches.bodies import MAX_KEEP_S, MIN_KEEP_S, Answered
from raylm.serve.batches.files import Purpose
from raylm.serve.batches.status import Status
from raylm.serve.shapes import CachedTokens, Shape

_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
Binary = Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]


class FileForm(Shape):
    """POST /v1/files: a form, whose file has one request on each line."""

    model_config = ConfigDict(
        json_schema_extra={"dependentRequired": {_ANCHOR: [_SECONDS], _SECONDS: [_ANCHOR]}}
    )
    file: Binary
    purpose: Literal["batch"]
    anchor: Literal["created_at"] = Field("created_at", alias=_ANCHOR)
    seconds: int = Field(MAX_KEEP_S, alias=_SECONDS, ge=MIN_KEEP_S, le=MAX_KEEP_S)


class FileObject(Shape):
    """A file; times are Unix time."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"]


class FileDeleted(Shape):
    """DELETE /v1/files/{id}."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class Page(Shape):
    """A part of a list."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(Page):
    """GET /v1/files."""

    data: list[FileObject]


class BatchProblem(Shape):
    """Why a batch was refused, or one line of it; lines are counted from 1."""

    message: str
    code: str
    line: int | None
    param: str | None


class BatchProblems(Shape):
    """All that is wrong with a batch's file."""

    object: Literal["list"]
    data: list[BatchProblem]


class RequestCounts(Shape):
    """How far a batch is."""

    total: int
    completed: int
    failed: int


class ReasoningTokens(Shape):
    """Always 0: this server's models do not tell them apart."""

    reasoning_tokens: int


class BatchUsage(Shape):
    """Token counts of all answers of a batch."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class BatchObject(Shape):
    """A batch; times are Unix time, and null for what it has not been."""

    id: str
    object: Literal["batch"]
    endpoint: Answered
    input_file_id: str
    completion_window: Literal["24h"]
    status: Status
    errors: BatchProblems | None
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(Page):
    """GET /v1/batches."""

    data: list[BatchObject]
