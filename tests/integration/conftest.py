"""One private Ray cluster and one trained, compressed run for all integration tests."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from raylm.config import Loaded, load_config
from raylm.deploy.connect import connect
from raylm.pipeline import run
from raylm.record import RunResult
from raylm.store import Store
from tests.integration.processes import stop_all

TINY = """
name: tiny
data:
  paths: {corpus}
  pattern: "**/*.py"
  seq_len: 64
  held_out: 0.2
  tokenizer: {{vocab_size: 400}}
model: {{preset: llama-1m, hidden_size: 64, intermediate_size: 160, num_layers: 2}}
train:
  steps: 12
  global_batch: 8
  micro_batch: 2
  optimizer: {{lr: 1e-2}}
evaluate: {{max_samples: 16}}
compress:
  max_samples: 16
  gate: {{max_kl: 0.1, min_top1_agreement: 0.8, max_perplexity_ratio: 1.05}}
"""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    stop_all()


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config small enough for seconds; its corpus is a package of the standard library."""
    corpus = Path(sysconfig.get_path("stdlib"), "json")
    file = tmp_path_factory.mktemp("config") / "raylm.yaml"
    file.write_text(TINY.format(corpus=corpus))
    return file


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
