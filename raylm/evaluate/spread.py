"""Score packed sequences in Ray tasks: the same rows whatever the number of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np

from raylm.data.shards import PackedSplit
from raylm.errors import DataError
from raylm.progress import Report, Tick
from raylm.remote import get

_BATCHES_A_TASK = 2


def spread(
    scorer: str,
    arguments: tuple[Path, ...],
    dataset: Path,
    *,
    max_samples: int | None,
    batch: int,
    num_cpus: float,
    stage: str,
    report: Report,
) -> np.ndarray:
    """Run `scorer` over the held-out split and return its rows in sample order.

    Args:
        scorer: `module:function` of `(arguments, dataset, rows) -> [n, k] array`.
        arguments: folders handed to the scorer.
        max_samples: at most so many sequences, evenly spaced over the split.

    Raises:
        DataError: the held-out split is empty.
    """
    import ray

    split = PackedSplit.open(dataset, "held_out")
    if split.num_samples == 0:
        raise DataError(
            "the held-out split holds no sequence",
            code="held-out-empty",
            hint="raise data.held_out or add text",
        )
    rows = chosen(split.num_samples, max_samples)
    task = ray.remote(num_cpus=num_cpus, max_retries=1)(_score)
    size = batch * _BATCHES_A_TASK
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    pending = [task.remote(scorer, arguments, dataset, part, batch) for part in parts]
    position = {reference: index for index, reference in enumerate(pending)}
    results: list[np.ndarray] = [np.empty(0)] * len(parts)
    done = 0
    report(Tick(stage, "loading the model", 0, len(rows), "sequences"))
    try:
        while pending:
            ready, pending = ray.wait(pending, num_returns=1)
            results[position[ready[0]]] = get(ready[0])
            done += len(parts[position[ready[0]]])
            report(Tick(stage, "held-out text", done, len(rows), "sequences"))
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)
    return np.concatenate(results)


def chosen(num_samples: int, max_samples: int | None) -> np.ndarray:
    """Which sequences are scored: all, or `max_samples` evenly spaced ones."""
    count = min(num_samples, max_samples or num_samples)
    return np.arange(count, dtype=np.int64) * num_samples // count


def _score(
    scorer: str, arguments: tuple[Path, ...], dataset: Path, rows: np.ndarray, batch: int
) -> np.ndarray:
    import torch

    torch.set_num_threads(1)
    module, _, name = scorer.partition(":")
    function = getattr(import_module(module), name)
    return np.concatenate(list(_batches(function, arguments, dataset, rows, batch)))


def _batches(
    function: object, arguments: tuple[Path, ...], dataset: Path, rows: np.ndarray, batch: int
) -> Iterator[np.ndarray]:
    assert callable(function)
    for start in range(0, len(rows), batch):
        yield function(arguments, dataset, rows[start : start + batch])
