"""Tests that make a Kubernetes on this machine: only when asked for with `-m e2e`.

All but those of the cluster itself share one cluster and one served release, in this order.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import served
from tests.e2e.deploy import deploy
from tests.e2e.load import Seen
from tests.e2e.models import NAME, Models, write_models
from tests.e2e.place import Place, place, stage
from tests.e2e.written import Starts, write

_HERE = Path(__file__).parent
_ORDER = ("local_cluster", "serving", "changes", "faults", "uninstall", "plain_helm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    own = [item for item in items if _HERE in item.path.parents]
    if "e2e" not in config.getoption("markexpr"):
        for item in own:
            item.add_marker(pytest.mark.skip(reason="makes a Kubernetes; asked for by -m e2e"))
    places = {item: index for index, item in enumerate(items)}
    names = [f"test_{name}" for name in _ORDER]
    own.sort(key=lambda item: (names.index(item.path.stem), places[item]))
    items[:] = [item for item in items if item not in own] + own


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return write_models(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def cluster(models: Models) -> Iterator[Place]:
    with place() as found:
        with stage("models in a volume"):
            found.claim("models", models.folder)
        yield found


@pytest.fixture(scope="session")
def file(cluster: Place, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release's raylm.yaml."""
    return served.config(cluster, models.old, tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def release(cluster: Place, file: Path, starts: Starts) -> Iterator[str]:
    """A served release that answers."""
    start = time.time()
    with stage("raylm deploy install, until it answers"):
        installed = deploy("install", "-c", file, "--wait-s", "0")
        assert installed.returncode == 0, installed.stderr
        phases, _ = served.watch_start(cluster, NAME, start)
    phases.show()
    starts["two pods, Redis, autoscaler"] = phases
    done = deploy("status", "-c", file)
    assert done.returncode == 0, done.stderr
    yield NAME


@pytest.fixture(scope="session")
def starts() -> Starts:
    """How releases came up, by the way of their installation."""
    return {}


@pytest.fixture(scope="session")
def seen() -> list[Seen]:
    """What clients saw."""
    return []


@pytest.fixture(scope="session", autouse=True)
def _written(starts: Starts, seen: list[Seen]) -> Iterator[None]:
    """All of it is added to the file that `RAYLM_E2E_OUT` names."""
    yield
    if out := os.environ.get("RAYLM_E2E_OUT"):
        write(Path(out), starts, seen)
