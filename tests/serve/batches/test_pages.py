"""Pages of lists."""

from __future__ import annotations

import pytest

from raylm.errors import RequestError
from raylm.serve.batches.pages import page

ITEMS = [(1.0, "a"), (3.0, "c"), (2.0, "b"), (3.0, "d")]


def asked(**query):
    found = page(ITEMS, query, age=lambda item: item, show=lambda item: {"id": item[1]})
    return "".join(item["id"] for item in found["data"]), found["has_more"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ("dcba", False)),
        ({"limit": "4"}, ("dcba", False)),
        ({"limit": "3"}, ("dcb", True)),
        ({"limit": "2", "after": "c"}, ("ba", False)),
        ({"after": "a"}, ("", False)),
        ({"order": "asc", "limit": "1", "after": "a"}, ("b", True)),
    ],
)
def test_pages_follow_each_other(query, expected):
    assert asked(**query) == expected


@pytest.mark.parametrize(
    "query",
    [{"limit": "0"}, {"limit": "101"}, {"limit": "²"}, {"order": "up"}, {"after": "x"}],
)
def test_what_there_is_not_is_refused_by_name(query):
    with pytest.raises(RequestError) as caught:
        asked(**query)
    assert caught.value.param == next(iter(query)) and caught.value.status == 400
