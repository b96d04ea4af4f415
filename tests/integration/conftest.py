"""One private Ray cluster and one trained, compressed run for all integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raylm.config import Loaded, load_config
from raylm.deploy.connect import connect
from raylm.pipeline import run
from raylm.record import RunResult
from raylm.store import Store
from raylm.train.loop import Job
from tests.integration.matrix import CASES, train_matrix
from tests.integration.numerics import all_cases
from tests.tiny import write_tiny


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("config") / "raylm.yaml")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def cluster(store: Store, config_file: Path) -> Iterator[None]:
    with connect(store, load_config(config_file).config.cluster):
        yield


@pytest.fixture(scope="session")
def loaded(config_file: Path) -> Loaded:
    return load_config(config_file)


@pytest.fixture(scope="session")
def finished(cluster: None, store: Store, loaded: Loaded) -> RunResult:
    """The tiny run, done once."""
    return run(loaded, store=store)


@pytest.fixture(scope="session")
def series_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cases of `numerics` have their data."""
    return tmp_path_factory.mktemp("series")


@pytest.fixture(scope="session")
def two_workers(
    finished: RunResult,
    store: Store,
    loaded: Loaded,
    series_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """All of `matrix.CASES` and of `numerics`, trained by one group of two workers: the folder
    of their losses.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    out = tmp_path_factory.mktemp("matrix")
    config, dataset = loaded.config, store.list("dataset")[0].path
    job = Job(config.model, config.train, dataset, out, 0, "c", resume=False, result=out)
    series = all_cases(series_root)
    TorchTrainer(
        train_matrix,
        train_loop_config={"job": job, "cases": CASES, "series": series, "out": str(out)},
        scaling_config=ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(name="matrix", storage_path=str(out / "ray")),
    ).fit()
    return out
