"""`train`: launch the workers, and take over the model they wrote."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raylm.artifact import Artifact, json_hash
from raylm.config.model import ModelConfig
from raylm.config.train import ObjectiveName, TrainConfig
from raylm.data.shards import SPLITS, PackedSplit
from raylm.errors import ConfigError, DataError, RaylmError
from raylm.model.folder import architecture_of, check_folder
from raylm.model.presets import architecture, resolve_shape
from raylm.progress import Tick
from raylm.stage import CHECKPOINTS, Context
from raylm.train.alone import fit_alone
from raylm.train.attempts import fit
from raylm.train.flops import flops_of
from raylm.train.loop import Job
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.objectives.objective import choose
from raylm.train.plan.check import check_training
from raylm.train.precision import settle_precision
from raylm.train.reference import reference_file
from raylm.train.skips import SKIPPED, read_skips
from raylm.train.source import Source, SpecialTokens
from raylm.train.trackers.children import Trackers

CODE_VERSION = 3


def train(model: ModelConfig, config: TrainConfig, dataset: Artifact, context: Context) -> Artifact:
    """Train a model on a dataset; a killed attempt goes on from its newest checkpoint.

    Raises:
        DataError: the dataset has fewer sequences than one step takes.
        HostError: the cluster cannot hold the workers, its memory not what they need, or the
            disk not what they write.
        RaylmError: a worker failed; the message has the cause, the hint the place of its log.
    """
    objective = _check(model, config, dataset)
    config, chosen = settle_precision(
        config, context.work, context.store.root, resume=context.resume
    )
    if chosen is not None:
        context.report(Tick("train", f"precision {chosen.precision}: {chosen.why}"))
    split = PackedSplit.open(dataset.path, "train")
    predicted = check_training(
        model,
        config,
        split,
        context.store.root,
        checkpoints=context.work / CHECKPOINTS,
        has_bucket=context.store.bucket is not None,
    )
    context.work.mkdir(parents=True, exist_ok=True)
    if not context.resume:
        shutil.rmtree(context.work / CHECKPOINTS, ignore_errors=True)
        reference = (reference_file(context.work, split).name for split in SPLITS)
        for name in (METRICS, SKIPPED, *reference):
            (context.work / name).unlink(missing_ok=True)
    with context.store.draft("model", context.name) as draft:
        job = Job(
            model=model,
            config=config,
            objective=objective,
            dataset=dataset.path,
            work=context.work,
            seed=context.seed,
            config_hash=json_hash(
                {"model": model.key(), "train": config.key(), "data": dataset.digest}
            ),
            resume=context.resume,
            result=draft.path,
            flops=flops_of(
                model,
                config,
                objective,
                seq_len=split.seq_len,
                vocab_size=split.vocab_size,
                source_len=split.source_len,
            ),
        )
        trackers = ("tensorboard", *config.trackers)
        train_it = fit_alone if config.is_alone else fit
        with _mirrored(job, context), Trackers(trackers, context.work, context.report):
            if not train_it(job, context.report):
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
            metrics={
                **_summary(lines),
                "skipped_windows": len(read_skips(context.work)),
                "plan": predicted,
                **({"precision": asdict(chosen)} if chosen else {}),
            },
        )
    return artifact


def _mirrored(job: Job, context: Context) -> AbstractContextManager[object]:
    """While workers train, copy their checkpoints to the store's bucket, if it is one."""
    if context.store.bucket is None or not job.config.checkpoint.upload or not context.key:
        return nullcontext()
    from raylm.train.mirror import Mirror

    mirror = Mirror(
        context.store.bucket, f"{CHECKPOINTS}/{context.key}", job.work,
        job.config.checkpoint, context.report,
    )  # fmt: skip
    if context.resume:
        mirror.fetch(job.config_hash)
    else:
        mirror.drop()
    return mirror


def _check(model: ModelConfig, config: TrainConfig, dataset: Artifact) -> ObjectiveName:
    split = PackedSplit.open(dataset.path, "train")
    if model.path is None:
        kind = architecture(resolve_shape(model, split.seq_len))
    else:
        kind = architecture_of(check_folder(Path(model.path)))
    objective = choose(config, split.format, kind)
    if config.lora is not None and model.path is None:
        raise ConfigError(
            "train.lora adapts a model that has learned something, model.preset is a new one",
            code="config-conflict",
            hint="set model.path, or remove train.lora",
        )
    if split.num_samples < config.global_batch:
        raise DataError(
            f"the corpus makes {split.num_samples} sequences of {split.seq_len} tokens, fewer "
            f"than one batch of {config.global_batch}",
            code="corpus-too-small",
            hint="add text, or lower train.global_batch, train.micro_batch or data.seq_len",
        )
    Source(split, 0, objective, SpecialTokens.of(dataset.path / "tokenizer"))
    return objective


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "held_out_loss" in line]
    last = steps[-1]
    result = next((line["result"] for line in reversed(lines) if "result" in line), None)
    held_out_loss = (
        max(held_out, key=lambda line: line["step"])["held_out_loss"] if held_out else None
    )
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "train_loss": last["loss"],
        # Of the model that is written.
        "held_out_loss": result["held_out_loss"] if result else held_out_loss,
        **({"result": result} if result else {}),
        "train_s": last["elapsed_s"],
        "tokens_per_s": last["tokens_per_s"],
        "mfu": last.get("mfu"),
        "peak_memory_bytes": next(
            (line["peak_memory_bytes"] for line in lines if "peak_memory_bytes" in line), None
        ),
    }
