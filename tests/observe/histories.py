"""Runs as their files would tell them."""

from __future__ import annotations

from typing import Any

from raylm.observe.history import History, Line


def step(n: int, loss: float, **more: Any) -> Line:
    return {
        "step": n, "time": float(n), "loss": loss, "lr": 0.001, "grad_norm": 1.0,
        "tokens": 100 * n, "elapsed_s": 2.0 * n, "tokens_per_s": 50.0, "horizon": 100,
        "recent_tokens_per_s": 60.0, "mfu": None, "left_s": 5.0, "data_wait_s": 0.001,
        "memory_bytes": 2**20, "memory_peak_bytes": 2**21,
        "max_memory_bytes": 2**21, "max_memory_peak_bytes": 2**22, **more,
    }  # fmt: skip


def history(
    name: str,
    lines: list[Line],
    *,
    state: str = "done",
    stages: dict[str, dict[str, Any]] | None = None,
    **record: Any,
) -> History:
    found = [{"stage": stage, "state": "done", **more} for stage, more in (stages or {}).items()]
    return History({"id": name, "state": state, "stages": found, **record}, state, lines)
