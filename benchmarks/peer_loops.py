"""The training loops that train_peers.py runs beside raylm's, in processes of their own.

Each is written as its library's own documentation writes it, and does what raylm's training
does: the same new weights, rows, order, targets, AdamW and clipping. What they share comes from
raylm, so that nobody trains on less: the rows of a step, and the model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylm.config.model import ModelConfig
from raylm.data.shards import NO_TARGET, PackedSplit
from raylm.train.shares import share
from raylm.train.source import Source, SpecialTokens

WORKERS = 2
BETAS, EPS, DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Task:
    """What every candidate trains."""

    dataset: str
    out: str
    """File that the first worker writes its figures to."""
    model: dict[str, Any]
    steps: int
    global_batch: int
    micro_batch: int
    lr: float
    precision: str
    zero: int
    mask_documents: bool


class Rows:
    """The samples of a run by step and rank, as torch tensors for transformers' own loss."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.split = PackedSplit.open(Path(task.dataset), "train")
        special = SpecialTokens.of(Path(task.dataset, "tokenizer"))
        self._source = Source(self.split, 0, "causal", special)

    def sample(self, number: int) -> dict[str, Any]:
        """One sample by its global number, arrays of [seq_len]."""
        return {name: value[0] for name, value in self._arrays(np.array([number])).items()}

    def micro_batches(self, step: int, rank: int) -> list[dict[str, Any]]:
        """What a rank reads in a step."""
        import torch

        task = self.task
        numbers = step * task.global_batch + np.arange(task.global_batch)
        parts = share(task.global_batch, task.micro_batch, WORKERS, rank)
        return [
            {name: torch.from_numpy(value) for name, value in self._arrays(numbers[part]).items()}
            for part in parts
        ]

    def num_targets(self, step: int) -> int:
        """Of all ranks in a step."""
        size = self.task.global_batch
        return self._source.num_targets(np.arange(step * size, (step + 1) * size))

    def _arrays(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        batch = self._source.batch(numbers)
        # transformers shifts labels itself: position i is what i - 1 learns.
        labels = np.full_like(batch.targets, NO_TARGET)
        labels[:, 1:] = batch.targets[:, :-1]
        positions = np.tile(np.arange(self.split.seq_len), (len(numbers), 1))
        if self.task.mask_documents:
            # Positions that start anew tell transformers where a document begins.
            positions = batch.position_ids
        return {"input_ids": batch.input_ids, "labels": labels, "position_ids": positions}


def new_model(task: Task, rows: Rows) -> Any:
    """The weights that raylm's training begins with."""
    import torch

    from raylm.model.build import build_model
    from raylm.model.folder import special_token_ids

    torch.manual_seed(0)
    return build_model(
        ModelConfig(**task.model),
        seq_len=rows.split.seq_len,
        vocab_size=rows.split.vocab_size,
        special_ids=special_token_ids(Path(task.dataset, "tokenizer")),
    ).train()


def adamw(model: Any, task: Task) -> Any:
    """torch's AdamW, fused, with decay on matrices only."""
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=task.lr, betas=BETAS, eps=EPS, fused=True)


@dataclass(slots=True)
class Figures:
    """What the first worker writes down."""

    ends: list[float]
    """Unix time at the end of each step."""
    losses: list[float]
    """Of all workers, nats per target."""
    peak_memory_bytes: int = 0

    def write(self, task: Task, rank: int) -> None:
        """All ranks call it together, after their last step."""
        from raylm.train.rss import max_over_ranks, peak_memory_bytes

        self.peak_memory_bytes = max_over_ranks(peak_memory_bytes())
        if rank == 0:
            Path(task.out).write_text(json.dumps(asdict(self)))


def ddp(task: Task) -> None:
    """One worker of plain torch, started by torchrun."""
    from contextlib import nullcontext

    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows, figures = Rows(task), Figures([], [])
    model = DistributedDataParallel(new_model(task, rows), gradient_as_bucket_view=True)
    optimizer = adamw(model, task)
    for step in range(task.steps):
        batches, num_targets = rows.micro_batches(step, rank), rows.num_targets(step)
        total = torch.zeros(1)
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with nullcontext() if last else model.no_sync(), autocast(task):
                # Divided by the targets of the whole step; DDP takes the mean over ranks.
                loss = model(
                    **batch, use_cache=False, num_items_in_batch=num_targets / WORKERS
                ).loss
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total)
        figures.losses.append(float(total) / WORKERS)
        figures.ends.append(time.time())
    figures.write(task, rank)
    dist.destroy_process_group()


def autocast(task: Task) -> Any:
    """bf16 as torch users have it: weights stay in fp32."""
    import torch

    return torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bf16")


def trainer(task: Task) -> None:
    """One worker of Hugging Face's Trainer, started by torchrun."""
    import torch
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    rows, figures = Rows(task), Figures([], [])

    class Samples(Dataset):
        def __len__(self) -> int:
            return task.steps * task.global_batch

        def __getitem__(self, number: int) -> dict[str, Any]:
            return rows.sample(number)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            figures.ends.append(time.time())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                figures.losses.append(logs["loss"])

    model = new_model(task, rows)
    model.config.use_cache = False
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=task.steps, use_cpu=True, ddp_backend="gloo",
            per_device_train_batch_size=task.micro_batch,
            gradient_accumulation_steps=task.global_batch // (task.micro_batch * WORKERS),
            train_sampling_strategy="sequential", bf16=task.precision == "bf16",
            learning_rate=task.lr, lr_scheduler_type="constant", optim="adamw_torch_fused",
            adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=EPS, weight_decay=DECAY,
            max_grad_norm=CLIP, logging_steps=1, save_strategy="no", report_to="none",
            disable_tqdm=True, ddp_find_unused_parameters=False, remove_unused_columns=False,
        )  # fmt: skip
        Trainer(
            model, arguments, train_dataset=Samples(),
            data_collator=default_data_collator, callbacks=[Clock()],
        ).train()  # fmt: skip
        figures.write(task, rank)


def bare(task: Task) -> None:
    """Ray Train with DeepSpeed as their examples write it: the driver."""
    os.environ.update(DS_ACCELERATOR="cpu", RAY_TRAIN_V2_ENABLED="1")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(num_cpus=WORKERS, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            bare_worker,
            train_loop_config={"task": task},
            scaling_config=ScalingConfig(num_workers=WORKERS),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name="bare", storage_path=folder),
        ).fit()
    ray.shutdown()


def bare_worker(settings: dict[str, Task]) -> None:
    """One worker of it."""
    import deepspeed
    import ray.train
    import torch
    import torch.distributed as dist

    task = settings["task"]
    rank = ray.train.get_context().get_world_rank()
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    # Else it is compiled at first use, for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    rows, figures = Rows(task), Figures([], [])
    model = new_model(task, rows)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=adamw(model, task),
        config={
            "train_batch_size": task.global_batch,
            "train_micro_batch_size_per_gpu": task.micro_batch,
            "gradient_clipping": CLIP,
            "bf16": {"enabled": task.precision == "bf16"},
            "zero_optimization": {"stage": task.zero},
            "zero_allow_untested_optimizer": True,
        },
    )
    for step in range(task.steps):
        batches, num_targets = rows.micro_batches(step, rank), rows.num_targets(step)
        total = torch.zeros(1)
        for batch in batches:
            # DeepSpeed divides by ranks and by accumulation steps.
            items = num_targets / (WORKERS * len(batches))
            loss = engine(**batch, use_cache=False, num_items_in_batch=items).loss
            engine.backward(loss)
            total += loss.detach().float() / len(batches)
            engine.step()
        dist.all_reduce(total)
        figures.losses.append(float(total) / WORKERS)
        figures.ends.append(time.time())
    figures.write(task, rank)


LOOPS: dict[str, Callable[[Task], None]] = {"trainer": trainer, "ddp": ddp, "ray_deepspeed": bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=list(LOOPS))
    parser.add_argument("task", help="JSON")
    arguments = parser.parse_args()
    LOOPS[arguments.loop](Task(**json.loads(arguments.task)))


if __name__ == "__main__":
    main()
