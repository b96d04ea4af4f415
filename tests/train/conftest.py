"""What tests of training share: one process group of one rank, and trainings that are forked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.train.alone import group_of_one
from tests.train.forks import Forks


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """torch.distributed is there, with this process as its only rank."""
    with group_of_one():
        yield


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Ended after the module's tests."""
    found = Forks()
    yield found
    found.close()
