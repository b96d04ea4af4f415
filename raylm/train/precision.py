"""`precision: auto`: chosen once, by what is faster here, and kept with the run.

On a CPU that is what a matrix product reaches in each precision: some have units for bf16, some
emulate it. On a GPU it is bf16 where there are units for it (NVIDIA Ampere and later). A resumed
run reads what was chosen: another precision would be another run.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raylm.artifact import write_atomic
from raylm.config.train import TrainConfig
from raylm.nvidia import query_gpus
from raylm.train.peak import Precision, measure_peak

# Only matrix products gain: the rest of a step is no faster in bf16 on a CPU, or slower.
_WORTH = 1.2
_BF16_SINCE = 8.0
"""Compute capability of the first NVIDIA GPUs with bf16 units."""
_FILE = "precision.json"


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and why it."""

    precision: Precision
    why: str


def faster(fp32_flops: float, bf16_flops: float) -> Choice:
    """The precision for a CPU of these rates of matrix products; pure."""
    rates = f"matrix products reach {fp32_flops / 1e9:,.0f} GFLOP/s in fp32 here and "
    rates += f"{bf16_flops / 1e9:,.0f} in bf16"
    if bf16_flops > _WORTH * fp32_flops:
        return Choice("bf16", rates)
    return Choice("fp32", f"{rates}, {_WORTH:g} times as many would pay")


def of_gpus(capabilities: tuple[float, ...]) -> Choice:
    """The precision for GPUs of these compute capabilities; pure."""
    if not capabilities:
        return Choice("bf16", "no GPU is seen from here; those since 2020 have units for bf16")
    least = min(capabilities)
    if least >= _BF16_SINCE:
        return Choice("bf16", f"GPUs of compute capability {least:g} have units for bf16")
    return Choice("fp32", f"GPUs of compute capability {least:g} have none for bf16; try fp16")


def choose_precision(config: TrainConfig, root: Path) -> Choice:
    """What `auto` stands for on this machine; both rates are measured, and the best known count.

    Args:
        root: the store's folder, where peaks of this machine are remembered.

    Raises:
        MissingExtra: torch is not installed.
    """
    if config.gpus_per_worker:
        return of_gpus(_capabilities())
    fp32, bf16 = (
        measure_peak(each, root) or 0.0
        for each in (config.model_copy(update={"precision": p}) for p in ("fp32", "bf16"))
    )
    return faster(fp32, bf16)


def settle_precision(
    config: TrainConfig, work: Path, root: Path, *, resume: bool
) -> tuple[TrainConfig, Choice | None]:
    """The config with its precision chosen, and the choice; None where there was none to make.

    Args:
        work: the stage's folder, where the choice is kept for a resumed run.
    """
    if config.precision != "auto":
        return config, None
    chosen = _kept(work) if resume else None
    if chosen is None:
        chosen = choose_precision(config, root)
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(work / _FILE, json.dumps(asdict(chosen)) + "\n")
    return config.model_copy(update={"precision": chosen.precision}), chosen


def _kept(work: Path) -> Choice | None:
    try:
        return Choice(**json.loads((work / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _capabilities() -> tuple[float, ...]:
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        return tuple(float(line) for line in query_gpus("compute_cap"))
    return ()
