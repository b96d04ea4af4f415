"""Which batches are worked on."""

from __future__ import annotations

import pytest

from raylm.serve.batches.turns import Turn, next_turns


def turns(text: str) -> list[Turn]:
    """`a1 b2`: tenant and age."""
    return [Turn(float(word[1:]), word[0], word) for word in text.split()]


@pytest.mark.parametrize(
    ("waiting", "running", "most", "expected"),
    [
        ("", "", 2, ""),
        ("a2 a1 a3", "", 2, "a1 a2"),
        ("a1 a2 a3 b9", "", 2, "a1 b9"),
        ("a4 b9", "a1 a2 a3", 4, "b9"),
        ("a4 b9 b8", "a1", 4, "b8 a4 b9"),
        ("a2", "a1", 1, ""),
        ("b1", "a1 a2 a3", 2, ""),
    ],
)
def test_the_tenant_with_the_fewest_goes_next_with_its_oldest(waiting, running, most, expected):
    assert list(next_turns(turns(waiting), turns(running), most)) == turns(expected)
