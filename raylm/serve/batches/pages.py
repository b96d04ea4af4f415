"""Pages of a list, as OpenAI's clients turn them: newest first, `limit`, `after` an id. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from raylm.errors import RequestError

T = TypeVar("T")
MAX_LIMIT = 100
MAX_FILES_SHOWN = 10_000


def page(
    items: Sequence[T],
    query: Mapping[str, str],
    *,
    age: Callable[[T], tuple[float, str]],
    show: Callable[[T], dict[str, Any]],
    default_limit: int = 20,
    max_limit: int = MAX_LIMIT,
) -> dict[str, Any]:
    """One page as OpenAI's list object; `age` is (Unix time made, id).

    Raises:
        RequestError: 400, the query asks for what there is not.
    """
    limit = _limit(query.get("limit"), default_limit, max_limit)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise _bad("order is asc or desc", "order")
    sorted_items = sorted(items, key=age, reverse=order == "desc")
    start = 0
    if after := query.get("after"):
        ids = [age(item)[1] for item in sorted_items]
        if after not in ids:
            raise _bad(f"there is nothing with the id {after!r}", "after")
        start = ids.index(after) + 1
    shown = [show(item) for item in sorted_items[start : start + limit]]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + limit < len(items),
    }


def _limit(text: str | None, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise _bad(f"limit is a number from 1 to {most}", "limit")
    return int(text[:9])


def _bad(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid-parameter", param=param)
