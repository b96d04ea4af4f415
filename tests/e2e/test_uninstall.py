"""The end of the release that the tests share."""

from pathlib import Path

import pytest

from tests.e2e import served
from tests.e2e.deploy import deploy
from tests.e2e.place import Place, stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]


def test_uninstall_leaves_nothing(cluster: Place, release: str, file: Path) -> None:
    assert served.left_over(cluster, release) != []
    with stage("raylm deploy uninstall"):
        done = deploy("uninstall", "-c", file)
    assert done.returncode == 0, done.stderr
    assert served.left_over(cluster, release) == []
