"""Gauges of two real ranks in the all-reduce of the loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from raylm.train.gauges import Gauge, live_figures, sum_and_gather
from raylm.train.recent import Recent


def rank_main(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    gauge = Gauge(0.25 + rank, 10**15 + rank, 3 * 10**15 - rank)
    loss = torch.tensor([float("nan") if rank else 1.5], dtype=torch.float64)
    found = [
        sum_and_gather(torch.full_like(loss, 1.5 + rank), gauge, rank=rank, world_size=2),
        sum_and_gather(loss, gauge, rank=rank, world_size=2),
    ]
    told = [[total, [list(g.__getstate__()) for g in ranks]] for total, ranks in found]
    Path(folder, f"{rank}.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def test_every_rank_gets_the_sum_and_what_each_saw_to_the_last_byte(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(rank_main, (str(tmp_path),), 2, start_method="spawn")
    both = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    expected = [[0.25, 10**15, 3 * 10**15], [1.25, 10**15 + 1, 3 * 10**15 - 1]]
    for (total, ranks), (lost, others) in both:
        assert total == 4.0
        assert ranks == expected
        # A loss that is no number spoils nothing else.
        assert lost != lost
        assert others == expected


def test_a_line_has_the_first_rank_and_the_largest_of_all() -> None:
    recent = Recent()
    recent.note(2.0, 100, 10.0, 1.0)
    found = live_figures([Gauge(0.1, 5, 9), Gauge(0.3, 7, 8)], recent, 20.0, None)
    assert found == {
        "recent_tokens_per_s": 50.0, "mfu": 0.25, "left_s": None, "data_wait_s": 0.3,
        "memory_bytes": 5, "memory_peak_bytes": 9, "max_memory_bytes": 7,
        "max_memory_peak_bytes": 9,
    }  # fmt: skip


@pytest.mark.parametrize("peak", [None, 4.0])
def test_without_a_peak_or_above_it_the_share_is_unknown(peak: float | None) -> None:
    recent = Recent()
    recent.note(2.0, 100, 10.0, 1.0)
    assert live_figures([Gauge(0.1, 5, 9)], recent, peak, 3.0)["mfu"] is None
