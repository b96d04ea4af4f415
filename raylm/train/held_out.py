"""The held-out loss of a checkpoint, by a process that is no rank of the training.

What DeepSpeed saved is put into a model built as the ranks build theirs, and looks at the same
sequences as a validation in the loop: the loss is the same but for the order of a sum (and, under
ZeRO 3 in bf16, for the rounding of weights that are kept in fp32).
"""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raylm.train.checkpoint import Checkpoint, check_files

if TYPE_CHECKING:
    from raylm.data.shards import PackedSplit
    from raylm.train.loop import Job
    from raylm.train.source import I64

HELD_OUT_SAMPLES = 32
"""Sequences that a look at the held-out split takes, at most: the first ones."""


def held_out_rows(split: PackedSplit) -> I64:
    """Rows that a look takes."""
    return np.arange(min(HELD_OUT_SAMPLES, split.num_samples))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a look at the held-out split found."""

    step: int
    held_out_loss: float
    """Nats per target token."""
    seconds: float


def validate_checkpoint(job: Job, checkpoint: Checkpoint) -> HeldOut:
    """The held-out loss of a checkpoint, on the CPU or the GPU of this process.

    Raises:
        ArtifactError: a file of it is not what it was when it was saved.
    """
    import torch

    from raylm.data.shards import PackedSplit
    from raylm.train.objectives.objective import objective_for
    from raylm.train.reference import reference_file
    from raylm.train.source import Source, SpecialTokens

    started = time.perf_counter()
    step = checkpoint.progress.step
    check_files(checkpoint.path, checkpoint.files)
    objective = objective_for(job.objective)
    model = _model(job, checkpoint, objective)
    split = PackedSplit.open(job.dataset, "held_out")
    special = SpecialTokens.of(job.dataset / "tokenizer")
    source = Source(split, job.seed, job.objective, special)
    reference = reference_file(job.work, "held_out")
    if reference.exists():
        source.reference = np.load(reference, allow_pickle=False)
    rows = held_out_rows(split)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), job.config.micro_batch):
            batch = source.in_order(rows[start : start + job.config.micro_batch])
            total += float(
                objective.loss(
                    model, batch, mask_documents=job.config.mask_documents, whole_head=True
                )
            )
    loss = total / source.num_targets_in_order(rows)
    return HeldOut(step, loss, round(time.perf_counter() - started, 3))


def _model(job: Job, checkpoint: Checkpoint, objective: Any) -> Any:
    import torch

    from raylm.data.shards import PackedSplit
    from raylm.model.build import build_model
    from raylm.model.folder import special_token_ids
    from raylm.train.lora import add_adapters
    from raylm.train.objectives.objective import head_of

    split = PackedSplit.open(job.dataset, "train")
    # The first weights are those of the run: DPO measures from them.
    torch.manual_seed(job.seed)
    model = build_model(
        job.model,
        seq_len=split.seq_len,
        vocab_size=split.vocab_size,
        special_ids=special_token_ids(job.dataset / "tokenizer"),
        head=head_of(job.objective),
        labels=split.labels,
    )
    if job.config.lora is not None:
        add_adapters(model, job.config.lora)
    objective.prepare(model, job.config)
    model.load_state_dict(_weights(job, checkpoint))
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    model.to(dtype=types.get(job.config.precision, torch.float32))
    if torch.cuda.is_available():
        model.cuda()
    return model.eval()


def _weights(job: Job, checkpoint: Checkpoint) -> dict[str, Any]:
    """All weights by name, from files that are pickles, and were hashed before."""
    import torch

    folder = checkpoint.state
    if job.config.zero < 3:
        file = folder / "mp_rank_00_model_states.pt"
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)["module"]
        return found
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        merged: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(
            str(folder.parent), tag=folder.name
        )
    return merged
