"""What clients may say of a call in its headers: a name for it, and how long they will wait."""

from __future__ import annotations

import re

from starlette.datastructures import Headers

from raylm.errors import RequestError

REQUEST_ID = "x-request-id"
TIMEOUT = "x-raylm-timeout-ms"
ID_PATTERN = r"^[!-~]{1,128}$"
"""Printable ASCII without blanks: it goes into logs as it is."""
TIMEOUT_PATTERN = r"^[1-9][0-9]{0,8}$"


def client_id(headers: Headers) -> str | None:
    """The name that the client has for the call.

    Raises:
        RequestError: it cannot be put into logs.
    """
    return _one(headers, REQUEST_ID, ID_PATTERN, "1 to 128 printable ASCII characters")


def wait_s(headers: Headers) -> float | None:
    """How long the client will wait for the whole answer.

    Raises:
        RequestError: that is no number of milliseconds.
    """
    found = _one(headers, TIMEOUT, TIMEOUT_PATTERN, "a whole number of milliseconds from 1")
    return None if found is None else int(found) / 1000


def _one(headers: Headers, name: str, pattern: str, allowed: str) -> str | None:
    values = headers.getlist(name)
    if not values:
        return None
    if len(values) > 1 or re.fullmatch(pattern.strip("^$"), values[0]) is None:
        raise RequestError(
            f"the header {name} must be {allowed}, once", code="invalid-header", param=name
        )
    return values[0]
