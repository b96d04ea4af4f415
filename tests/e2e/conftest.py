"""Tests that make a Kubernetes on this machine: only when asked for with `-m e2e`."""

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "e2e" in config.getoption("markexpr"):
        return
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="makes a Kubernetes; asked for by -m e2e"))
