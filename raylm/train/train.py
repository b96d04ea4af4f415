"""`train`: launch the workers, and take over the model they wrote."""

from __future__ import annotations

import shutil
from typing import Any

from raylm.artifact import Artifact, json_hash
from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.data.shards import PackedSplit
from raylm.errors import DataError, RaylmError
from raylm.model.presets import resolve_shape
from raylm.stage import CHECKPOINTS, Context
from raylm.train.attempts import fit
from raylm.train.loop import Job
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.skips import SKIPPED, read_skips

CODE_VERSION = 2


def train(model: ModelConfig, config: TrainConfig, dataset: Artifact, context: Context) -> Artifact:
    """Train a model on a dataset; a killed attempt goes on from its newest checkpoint.

    Raises:
        DataError: the dataset has fewer sequences than one step takes.
        HostError: the cluster cannot hold the workers.
        RaylmError: a worker failed; the message has the cause, the hint the place of its log.
    """
    _check(model, config, dataset)
    context.work.mkdir(parents=True, exist_ok=True)
    if not context.resume:
        shutil.rmtree(context.work / CHECKPOINTS, ignore_errors=True)
        for name in (METRICS, SKIPPED):
            (context.work / name).unlink(missing_ok=True)
    with context.store.draft("model", context.name) as draft:
        job = Job(
            model=model,
            config=config,
            dataset=dataset.path,
            work=context.work,
            seed=context.seed,
            config_hash=json_hash(
                {"model": model.key(), "train": config.key(), "data": dataset.digest}
            ),
            resume=context.resume,
            result=draft.path,
        )
        if not fit(job, context.report):
            raise RaylmError(
                "the run was told to stop before its end",
                code="train-stopped",
                hint="`raylm run` goes on from the checkpoint that was written",
            )
        lines = list(read_metrics(context.work / METRICS))
        artifact = draft.commit(
            parents=(dataset,),
            config={
                "model": model.model_dump(mode="json"),
                "train": config.model_dump(mode="json"),
            },
            metrics={**_summary(lines), "skipped_windows": len(read_skips(context.work))},
        )
    return artifact


def _check(model: ModelConfig, config: TrainConfig, dataset: Artifact) -> None:
    split = PackedSplit.open(dataset.path, "train")
    if model.path is None:
        resolve_shape(model, split.seq_len)
    if split.num_samples < config.global_batch:
        raise DataError(
            f"the corpus makes {split.num_samples} sequences of {split.seq_len} tokens, fewer "
            f"than one batch of {config.global_batch}",
            code="corpus-too-small",
            hint="add text, or lower train.global_batch, train.micro_batch or data.seq_len",
        )


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [line for line in lines if "loss" in line]
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    last = steps[-1]
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "train_loss": last["loss"],
        "held_out_loss": held_out[-1] if held_out else None,
        "train_s": last["elapsed_s"],
        "tokens_per_s": last["tokens_per_s"],
    }
