"""`compress`: a smaller model, compared with its original, refused if it is too far from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raylm.artifact import Artifact, content_digest, hash_tree
from raylm.config.compress import CompressConfig
from raylm.config.engine import EngineConfig
from raylm.evaluate.compare import compare, hold_gate
from raylm.progress import Tick
from raylm.remote import get
from raylm.stage import Context

CODE_VERSION = 1


def compress(
    config: CompressConfig,
    engine: EngineConfig,
    model: Artifact,
    dataset: Artifact,
    context: Context,
) -> Artifact:
    """Quantize a model; the result is committed only if the gate holds.

    Raises:
        GateError: the compressed model is too far from its original.
        ModelError: the model cannot be quantized.
    """
    name = f"{model.manifest.name}-{config.method}"
    with context.store.draft("model", name) as draft:
        context.report(Tick("compress", f"rounding weights to {config.method}"))
        counts = _quantize(model.path, draft.path)
        figures = compare(
            draft.path,
            model.path,
            dataset,
            max_samples=config.max_samples,
            batch=config.batch,
            num_cpus=config.num_cpus,
            stage="compress",
            report=context.report,
        )
        hold_gate(figures, config.gate, what=f"{config.method} of {model.ref}")
        metrics: dict[str, Any] = {
            **{key: figure.value for key, figure in figures.items()},
            "intervals": {key: figure.to_json() for key, figure in figures.items()},
            **counts,
            "weight_bytes": _weight_bytes(draft.path),
            "reference_weight_bytes": _weight_bytes(model.path),
        }
        if config.measure_speed:
            metrics |= _speeds(draft.path, model, engine, context)
        return draft.commit(
            parents=(model, dataset), config=config.model_dump(mode="json"), metrics=metrics
        )


def _quantize(source: Path, target: Path) -> dict[str, int]:
    """In a Ray task: the driver stays free of torch."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=0)(_quantize_task)
    counts: dict[str, int] = get(task.remote(source, target))
    return counts


def _quantize_task(source: Path, target: Path) -> dict[str, int]:
    from raylm.compress.folder import write_int8_folder

    return write_int8_folder(source, target)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _speeds(
    candidate: Path, model: Artifact, engine: EngineConfig, context: Context
) -> dict[str, float]:
    import ray

    # The derived engine files must have the address that the artifact is going to have.
    digest = content_digest("model", hash_tree(candidate))
    cache = context.store.root / "engine"
    task = ray.remote(num_cpus=1, max_retries=0)(_speed_task)
    found = {}
    for label, folder, key in (
        ("reference_tokens_per_s", model.path, model.digest),
        ("tokens_per_s", candidate, digest),
    ):
        context.report(Tick("compress", f"measuring {label.replace('_', ' ')}"))
        found[label] = get(task.remote(folder, key, cache, engine))
    return found


def _speed_task(folder: Path, digest: str, cache: Path, engine: EngineConfig) -> float:
    from raylm.compress.speed import measure_speed

    # All cores: stages run one after the other, nothing else works now.
    return measure_speed(folder, digest, cache, engine, len(os.sched_getaffinity(0)))
