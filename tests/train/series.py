"""The losses of a short run, and how far two such series are from each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.config.model import ModelConfig
from raylm.config.train import ObjectiveName, TrainConfig

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}
PRESET_OF: dict[ObjectiveName, str] = {
    "causal": "llama-1m", "sft": "llama-1m", "dpo": "llama-1m", "seq2seq": "t5-1m",
    "mlm": "bert-1m", "classify": "bert-1m",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained, on how many samples a step, with what of `train` changed."""

    objective: ObjectiveName
    dataset: Path
    global_batch: int
    num_micro_batches: int = 1
    """Of a step, on each worker."""
    steps: int = 5
    changes: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig | None = None
    """None is a tiny one of the objective's architecture."""


WORLD_SIZE_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""How far a loss may be, relatively, from that of a run whose number of workers never changed, in a
training that is stable: where one spikes, what differs by rounding grows as anything does."""
Series = dict[str, list[float]]
"""`loss` and `grad_norm` of each step."""


def train_series(case: Case, work: Path, *, rank: int, world_size: int) -> Series:
    """Train a case in this process, a rank of a group that is there already."""
    from raylm.train.loop import Job
    from raylm.train.worker import Worker

    model = case.model or ModelConfig(preset=PRESET_OF[case.objective], **SMALL)
    config = TrainConfig(
        steps=case.steps, workers=world_size, global_batch=case.global_batch,
        micro_batch=case.global_batch // (world_size * case.num_micro_batches),
        schedule={"kind": "constant", "warmup": 0}, **case.changes,
    )  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    job = Job(
        model, config, case.dataset, work, 0, "c", resume=False, result=work / "model",
        objective=case.objective,
    )  # fmt: skip
    worker = Worker(job, rank=rank, world_size=world_size)
    worker.restore()
    found: Series = {"loss": [], "grad_norm": []}
    while not worker.finished():
        figures = worker.step()
        found["loss"].append(figures.loss)
        if figures.grad_norm is not None:
            found["grad_norm"].append(figures.grad_norm)
    worker.close()
    return found


def residuals(found: npt.ArrayLike, expected: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Relative differences, step by step."""
    expected = np.asarray(expected, np.float64)
    return (np.asarray(found, np.float64) - expected) / np.abs(expected)


def drift(residuals: npt.NDArray[np.float64]) -> float:
    """Their mean: rounding goes either way, what a wrong divisor does goes one way (TRL's
    zero-mean residual). Differences that stay within a tolerance can still have one.
    """
    return float(residuals.mean())
