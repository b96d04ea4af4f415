"""What tests of training share: one process group of one rank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.train.alone import group_of_one


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """torch.distributed is there, with this process as its only rank."""
    with group_of_one():
        yield
