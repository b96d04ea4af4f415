"""The lines of a batch's input: what each must hold, and what is said of those that do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylm.errors import RequestError
from raylm.serve.batches.status import Problem
from raylm.serve.body import parse_json

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify")
MAX_ID_CHARS = 512
MAX_PROBLEMS = 100
"""More are not listed: a file of the wrong kind is wrong in every line."""
OVERHEAD_BYTES = 4096
"""What a line may have around its body."""


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    number: int
    """From 1."""
    custom_id: str
    body: bytes
    """A JSON object."""


class BadLine(Exception):
    """A line that is no request."""

    def __init__(self, number: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(message, code, number, param)


@dataclass(frozen=True, slots=True)
class Checked:
    """What an input holds: requests, or reasons why it is refused."""

    total: int
    problems: tuple[Problem, ...]


def check_input(path: Path, endpoint: str, *, max_lines: int, max_body_bytes: int) -> Checked:
    """Read an input through. Memory: its ids."""
    seen: set[str] = set()
    problems: list[Problem] = []
    for number, raw in raw_lines(path, max_body_bytes):
        try:
            line = parse_line(number, raw, endpoint, max_body_bytes)
            if line.custom_id in seen:
                raise BadLine(
                    number,
                    f"the custom_id {line.custom_id!r} is that of an earlier line",
                    "duplicate_custom_id",
                    "custom_id",
                )
            seen.add(line.custom_id)
        except BadLine as error:
            problems.append(error.problem)
        if len(seen) > max_lines:
            problems.append(Problem(f"there are more than {max_lines} requests", "too_many_tasks"))
        if len(seen) > max_lines or len(problems) >= MAX_PROBLEMS:
            break
    if not seen and not problems:
        problems.append(Problem("the file has no requests", "empty_file"))
    return Checked(len(seen), tuple(problems))


def read_lines(path: Path, endpoint: str) -> Iterator[Line]:
    """The requests of an input that was checked, maybe under other limits than there are now."""
    most = path.stat().st_size
    for number, raw in raw_lines(path, most):
        yield parse_line(number, raw, endpoint, most)


def raw_lines(path: Path, max_body_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Number and content of every line that is not empty; one that is too long is cut."""
    most = max_body_bytes + OVERHEAD_BYTES
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(most + 1):
            number += 1
            rest = raw
            while len(rest) > most and not rest.endswith(b"\n"):
                rest = file.readline(most + 1)
            if raw.strip():
                yield number, raw


def parse_line(number: int, raw: bytes, endpoint: str, max_body_bytes: int) -> Line:
    """One request.

    Raises:
        BadLine: it is none, or one for another endpoint.
    """
    if len(raw) > max_body_bytes + OVERHEAD_BYTES:
        raise BadLine(number, f"the line is longer than {len(raw) - 1} bytes", "line_too_long")
    try:
        fields = parse_json(raw, "the line")
    except RequestError as error:
        raise BadLine(number, error.message, "invalid_json_line") from None
    for name in fields:
        if name not in ("custom_id", "method", "url", "body"):
            raise BadLine(number, f"unknown field {name!r}", "unknown_parameter", name)
    custom_id = _custom_id(number, fields)
    _check_target(number, fields, endpoint)
    return Line(number, custom_id, _body(number, fields, max_body_bytes))


def _custom_id(number: int, fields: dict[str, Any]) -> str:
    found = _present(number, fields, "custom_id")
    if not isinstance(found, str) or not 0 < len(found) <= MAX_ID_CHARS:
        what = f"custom_id must be a string of 1 to {MAX_ID_CHARS} characters"
        raise BadLine(number, what, "invalid_custom_id", "custom_id")
    return found


def _check_target(number: int, fields: dict[str, Any], endpoint: str) -> None:
    method = _present(number, fields, "method")
    if method != "POST":
        raise BadLine(
            number, f"method is {method!r}; it must be 'POST'", "invalid_method", "method"
        )
    url = _present(number, fields, "url")
    if url != endpoint:
        raise BadLine(
            number,
            f"url is {url!r}; this batch is for {endpoint!r}",
            "invalid_url" if url not in ENDPOINTS else "mismatched_endpoint",
            "url",
        )


def _body(number: int, fields: dict[str, Any], max_body_bytes: int) -> bytes:
    body = _present(number, fields, "body")
    if not isinstance(body, dict):
        raise BadLine(number, "body must be an object", "invalid_body", "body")
    if body.get("stream"):
        raise BadLine(number, "nothing is streamed in a batch", "invalid_body", "body.stream")
    priority = body.get("priority")
    if isinstance(priority, int) and priority > 0:
        what = f"priority is {priority}; nothing in a batch goes before other batches"
        raise BadLine(number, what, "invalid_body", "body.priority")
    raw = json.dumps(body, ensure_ascii=False).encode()
    if len(raw) > max_body_bytes:
        raise BadLine(
            number, f"body is larger than {max_body_bytes} bytes", "line_too_long", "body"
        )
    return raw


def _present(number: int, fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise BadLine(number, f"{name!r} is missing", "missing_required_parameter", name)
    return fields[name]
