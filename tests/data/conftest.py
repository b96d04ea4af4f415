"""A small corpus of code and prose in several scripts, and one Ray cluster for all tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raylm.artifact import Artifact
from raylm.config.data import DataConfig
from raylm.progress import Tick
from raylm.stage import Context
from raylm.store import Store

WORDS = [
    *("alpha", "beta", "gamma", "delta", "return", "import", "class", "value", "print", "def"),
    *("Straße", "naïve", "café", "данные", "модель", "模型", "数据", "नमस्ते", "👍🏽", "don't"),
    *("it's", "self.name", "12", "345", "2026", "=>", "==", "()", "{}", "--"),
]

Prepare = Callable[..., Artifact]


def write_text(seed: int, num_lines: int) -> str:
    """Lines of random words with indentation; the same for the same seed."""
    draw = random.Random(seed)
    lines = (
        " " * draw.choice((0, 0, 4, 8)) + " ".join(draw.choices(WORDS, k=draw.randint(1, 9)))
        for _ in range(num_lines)
    )
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def text() -> Callable[[int, int], str]:
    return write_text


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 text files, two of them equal, and one JSONL file of 60 records with three bad ones."""
    import json

    root = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        file = root / "texts" / f"part{number % 3}" / f"{number:02}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(write_text(number if number != 33 else 7, 5 + 3 * number), encoding="utf-8")
    (root / "texts" / "part0" / "33.txt").write_bytes((root / "texts/part1/07.txt").read_bytes())
    lines = [json.dumps({"text": write_text(1000 + n, 1 + n), "n": n}) for n in range(57)]
    lines.insert(5, "{not json")
    lines.insert(20, '{"n": 1}')
    lines.insert(41, "[1, 2]")
    (root / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    import ray

    ours = not ray.is_initialized()
    if ours:
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=200 * 10**6,
            include_dashboard=False,
            log_to_driver=False,
            namespace="raylm-tests-data",
        )
    yield
    if ours:
        ray.shutdown()


@pytest.fixture(scope="session")
def prepare_in(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """prepare(base_dir, ticks=..., seed=..., store=..., **config) on the shared cluster."""
    from raylm.data.prepare import prepare

    def call(
        base_dir: Path,
        *,
        seed: int = 0,
        ticks: list[Tick] | None = None,
        store: Path | None = None,
        **config: Any,
    ) -> Artifact:
        root = store or tmp_path_factory.mktemp("store")
        report = (lambda tick: None) if ticks is None else ticks.append
        context = Context(Store(root), "test", seed, base_dir, root, report)
        return prepare(DataConfig.model_validate(config), context)

    return call


BASIC: dict[str, Any] = {
    "paths": ["texts", "records.jsonl"],
    "seq_len": 64,
    "held_out": 0.2,
    "shard_samples": 50,
    "tokenizer": {"vocab_size": 400},
}


@pytest.fixture(scope="session")
def basic() -> dict[str, Any]:
    """A config for `corpus_dir`."""
    return BASIC


@pytest.fixture(scope="session")
def dataset(prepare_in: Prepare, corpus_dir: Path) -> Artifact:
    return prepare_in(corpus_dir, **BASIC)
