"""`train`: launch the workers, watch them, and take over the model they wrote."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raylm.artifact import Artifact, json_hash
from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.data.shards import PackedSplit
from raylm.errors import DataError, HostError
from raylm.model.presets import resolve_shape
from raylm.progress import Tick
from raylm.remote import translate
from raylm.stage import CHECKPOINTS, Context
from raylm.train.loop import Job, train_loop
from raylm.train.metrics import METRICS, MetricsTail, read_metrics
from raylm.train.plan.check import check_training

CODE_VERSION = 1


def train(model: ModelConfig, config: TrainConfig, dataset: Artifact, context: Context) -> Artifact:
    """Train a model on a dataset; a killed attempt goes on from its newest checkpoint.

    Raises:
        DataError: the dataset has fewer sequences than one step takes.
        HostError: the cluster cannot hold the workers, or its memory not what they need.
        RaylmError: a worker failed; the message has the cause, the hint the place of its log.
    """
    predicted = _check(model, config, dataset, context)
    context.work.mkdir(parents=True, exist_ok=True)
    if not context.resume:
        shutil.rmtree(context.work / CHECKPOINTS, ignore_errors=True)
        (context.work / METRICS).unlink(missing_ok=True)
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
        with _watch(context, config):
            _fit(job)
        lines = list(read_metrics(context.work / METRICS))
        artifact = draft.commit(
            parents=(dataset,),
            config={
                "model": model.model_dump(mode="json"),
                "train": config.model_dump(mode="json"),
            },
            metrics=_summary(lines) | {"plan": predicted},
        )
    return artifact


def _check(
    model: ModelConfig, config: TrainConfig, dataset: Artifact, context: Context
) -> dict[str, Any] | None:
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
    return check_training(model, config, split, context.store.root)


def _fit(job: Job) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config = job.config
    _check_resources(config, ray.cluster_resources())
    resources = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker
    ray_folder = job.work / "ray"
    shutil.rmtree(ray_folder, ignore_errors=True)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo"),
        run_config=RunConfig(name="train", storage_path=str(ray_folder)),
    )
    try:
        _in_thread(trainer.fit)
    except Exception as error:
        raise translate(
            error,
            "a training worker failed",
            code="train-worker-failed",
            hint=f"`raylm logs` shows the workers' logs; {job.work} keeps the checkpoints, and "
            "`raylm run` goes on from the newest",
        ) from error
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def _in_thread(work: Callable[[], object]) -> None:
    """Call something outside the main thread, and wait for it here.

    Ray Train takes Ctrl-C for itself when it runs in the main thread, and then ends the process
    with exit code 1; signals stay ours this way, and what was started ends with the cluster.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="raylm-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if failure:
        raise failure[0]


def _check_resources(config: TrainConfig, resources: dict[str, float]) -> None:
    for name, wanted in (
        ("CPU", config.workers * config.cpus_per_worker),
        ("GPU", config.workers * config.gpus_per_worker),
    ):
        if wanted > resources.get(name, 0.0) + 1e-9:
            raise HostError(
                f"{config.workers} workers need {wanted:g} {name}s, the cluster has "
                f"{resources.get(name, 0.0):g}",
                code="cluster-too-small",
                hint=f"lower train.workers or train.{name.lower()}s_per_worker, or add nodes",
            )


@contextmanager
def _watch(context: Context, config: TrainConfig) -> Iterator[None]:
    """Turn new lines of metrics.jsonl into progress while the workers work."""
    stop = threading.Event()

    def follow() -> None:
        context.report(Tick("train", f"starting {config.workers} workers"))
        tail = MetricsTail(context.work / METRICS)
        while not stop.wait(0.5):
            steps = [line for line in tail.new() if "loss" in line]
            if steps:
                context.report(_tick(steps[-1], config))

    thread = threading.Thread(target=follow, name="raylm-train-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _tick(line: dict[str, Any], config: TrainConfig) -> Tick:
    text = f"loss {line['loss']:.3f}, {line['tokens_per_s']:,.0f} tokens/s"
    if line["horizon"] is None:
        return Tick("train", text, line["elapsed_s"], config.time_s, "s")
    return Tick("train", text, line["step"], line["horizon"], "steps")


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
        "peak_memory_bytes": next(
            (line["peak_memory_bytes"] for line in lines if "peak_memory_bytes" in line), None
        ),
    }
