"""Reading a request body: bounded in size and time, and strictly JSON.

Nothing that a client can send may end as a 500: wrong content type, too much, too slow, bad
UTF-8, bad JSON (with its position), duplicate keys, NaN, lone surrogates, bottomless nesting.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from raylm.config.serve import LimitsConfig
from raylm.errors import RequestError
from raylm.serve.limits import Admission
from raylm.serve.tenant import tenant_of

MAX_KEYS = 10_000
"""Of one object: each may be a mistake of its own, and finding those takes time."""

MAX_DEPTH = 200
"""Levels of a body's JSON: whoever writes it again later recurses, too."""
_TOO_DEEP = f"is nested too deeply; {MAX_DEPTH} levels are taken"


async def read_json(request: Request, limits: LimitsConfig, admission: Admission) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        RequestError: 400, 408, 413 or 415, saying what is wrong and where; 503 where there is
            no place for the call, before anything is read.
        ClientDisconnect: the client left before it had sent everything.
    """
    try:
        async with admission.arriving(tenant_of(request.scope), limits.body_timeout_s):
            _check_headers(request, limits.max_body_bytes)
            raw = await _read(request, limits.max_body_bytes)
    except TimeoutError:
        raise RequestError(
            f"the request body did not arrive within {limits.body_timeout_s:g} s, or was the "
            "slowest of too many",
            code="body-timeout",
            status=408,
        ) from None
    return parse_json(raw)


async def _read(request: Request, limit_bytes: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        parts.append(part)
    return b"".join(parts)


def _check_headers(request: Request, limit_bytes: int) -> None:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError(
            f"content-type is {content_type or 'missing'}; it must be application/json",
            code="unsupported-content-type",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        # Never unpacked, so that no few bytes can become many.
        raise RequestError(
            "send the body uncompressed", code="unsupported-content-encoding", status=415
        )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > limit_bytes:
        raise _too_large(limit_bytes)


def _too_large(limit_bytes: int) -> RequestError:
    return RequestError(
        f"the request body is larger than {limit_bytes} bytes", code="body-too-large", status=413
    )


def parse_json(raw: bytes, what: str = "the request body") -> dict[str, Any]:
    """JSON text as a dict; `what` is its name in errors.

    Raises:
        RequestError: it is not UTF-8, not JSON, or not an object.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique
        )
        if b"\\ud" in raw or b"\\uD" in raw:
            # Escaped surrogates may be unpaired; no tokenizer and no response takes those.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(what, f"is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise _malformed(what, "contains an unpaired surrogate (\\ud800 to \\udfff)") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _malformed(what, f"is not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise _malformed(what, _TOO_DEEP) from None
    except ValueError as error:  # a number with thousands of digits
        raise _malformed(what, f"is not usable: {error}") from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise _malformed(what, _TOO_DEEP)
    if not isinstance(value, dict):
        raise _malformed(what, f"must be an object, not {_kind(value)}")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for some in inside for each in some if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _malformed(what: str, problem: str) -> RequestError:
    return RequestError(f"{what} {problem}", code="invalid-json")


def _no_constant(name: str) -> NoReturn:
    raise RequestError(f"{name} is not a number in JSON", code="invalid-json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise RequestError(
            f"an object has {len(pairs)} keys, and at most {MAX_KEYS} are taken",
            code="invalid-json",
        )
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RequestError(f"the key {twice!r} appears twice", code="invalid-json")
    return found


__all__ = ["ClientDisconnect", "parse_json", "read_json"]
