"""What telling speed, memory and waits costs a training step, on two ranks with gloo.

    python benchmarks/step_gauges.py

Times, alternating in one process group, what a step did before (the all-reduce of the loss, a
short line of metrics.jsonl) and what it does (every rank's gauge in the same all-reduce, a line
with all figures). Prints JSON: the least mean of several rounds, microseconds, first rank.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

from raylm.train.gauges import live_figures, read_gauge, sum_and_gather
from raylm.train.metrics import MetricsLog
from raylm.train.recent import Recent

RANKS, ROUNDS, CALLS = 2, 7, 1000


def mean_us(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - started) / CALLS * 1e6


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/group", rank=rank, world_size=RANKS
    )
    recent, total = Recent(), torch.zeros(1, dtype=torch.float64)
    log = MetricsLog(Path(folder) / f"metrics-{rank}.jsonl", from_step=0)
    short = {"loss": 2.5, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10**6, "elapsed_s": 100.0,
             "tokens_per_s": 10**4, "horizon": 1000}  # fmt: skip

    def before() -> None:
        torch.distributed.all_reduce(total)
        float(total)
        log.write(step=1, time=1.0, **short)

    def after() -> None:
        _, ranks = sum_and_gather(total, read_gauge(0.001), rank=rank, world_size=RANKS)
        recent.note(0.2, 4096, 10**9, time.monotonic())
        left_s = recent.left_s(done=1, horizon=1000, elapsed_s=1.0, time_s=None)
        log.write(step=1, time=1.0, **short, **live_figures(ranks, recent, 1e11, left_s))

    found: dict[str, list[float]] = {"before_us": [], "after_us": []}
    for _ in range(ROUNDS):
        found["before_us"].append(mean_us(before))
        found["after_us"].append(mean_us(after))
    if rank == 0:
        least = {name: round(min(times), 1) for name, times in found.items()}
        print(json.dumps(least | {"added_us": round(least["after_us"] - least["before_us"], 1)}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(rank_main, (folder,), RANKS, start_method="spawn")
