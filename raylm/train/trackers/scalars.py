"""The figures of a line of metrics.jsonl under the names that trackers show; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {
    "loss": "train/loss",
    "lr": "train/lr",
    "grad_norm": "train/grad_norm",
    "tokens": "train/tokens",
    "held_out_loss": "held_out/loss",
    "recent_tokens_per_s": "speed/tokens_per_s",
    "tokens_per_s": "speed/tokens_per_s_overall",
    "mfu": "speed/mfu",
    "data_wait_s": "speed/data_wait_s",
    "elapsed_s": "speed/elapsed_s",
    "left_s": "speed/left_s",
    "memory_bytes": "memory/first_worker_bytes",
    "memory_peak_bytes": "memory/first_worker_peak_bytes",
    "max_memory_bytes": "memory/fullest_worker_bytes",
    "max_memory_peak_bytes": "memory/fullest_worker_peak_bytes",
}


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """What of a line is drawn; what is unknown is left out, not drawn as nought."""
    return {name: float(line[key]) for key, name in _NAMES.items() if line.get(key) is not None}
