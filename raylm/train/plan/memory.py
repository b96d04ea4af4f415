"""The memory of one worker, part by part, at the moment when it is fullest.

Four moments are compared: the model as it is built (on a GPU it is moved there first, and its host
has it meanwhile), the backward pass as it begins (all activations are there), the
reduction of the gradients as it ends (all gradients are there, and copies of them), and the
optimizer's step. What DeepSpeed 0.19 keeps is read from its stage_1_and_2.py, stage3.py and
engine.py, under the settings of `raylm.train.zero`; what autograd keeps of a layer was counted
with saved-tensor hooks (transformers 5.23, torch 2.15), in a file for each architecture.
docs/plan.md has the errors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from raylm.config.train import TrainConfig
from raylm.train.plan.batch import BatchMemory, Kept, width_bytes
from raylm.train.plan.subject import Subject
from raylm.train.zero import BUCKET_ELEMENTS, MUON_BUCKET_ELEMENTS

MIB = 2**20
# ZeRO-0 flattens gradients up to so many elements at a time (engine.py, allreduce_no_retain).
_ALLREDUCE_ELEMENTS = 500_000_000
# ZeRO-3 keeps so many gathered parameters (stage3_max_live_parameters, DeepSpeed's default).
_LIVE_PARAMETERS = 1_000_000_000
# It gathers so many at a time (stage3_prefetch_bucket_size, DeepSpeed's default).
_PREFETCH_ELEMENTS = 50_000_000
# glibc takes blocks up to this size from its heap, which it seldom gives back
# (DEFAULT_MMAP_THRESHOLD_MAX); larger ones are mapped, and returned when they are freed.
_HEAP_BLOCK_BYTES = 32 * MIB
# Measured, docs/plan.md: what a CPU worker holds beyond its tensors, as a constant (arenas,
# workspaces of matrix products) and in activations of so many layers (holes in the heap).
_ARENA_BYTES = 60_000_000
_HOLES_LAYERS = 4
# Not measured: what torch's caching allocator cannot use of what comes and goes on a GPU, and
# CUDA's and NCCL's own memory there.
_GPU_HOLES = 0.1
_GPU_CONTEXT_BYTES = 1024 * MIB
# Measured: a Ray Train worker that has imported torch, DeepSpeed and transformers.
PROCESS_BYTES = 1_047_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one worker at its fullest moment; the parts add up to the total."""

    moment: str
    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    communication: int = 0
    """Buckets, and flat copies that are reduced."""
    activations: int = 0
    loss: int = 0
    allocator: int = 0
    """What malloc, or torch's allocator, holds and cannot use."""
    process: int = 0
    """Python, torch, DeepSpeed, Ray; on a GPU the driver's context instead."""

    def parts(self) -> dict[str, int]:
        """Every part by its name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "moment"}

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return sum(self.parts().values())


def peak_memory(subject: Subject, config: TrainConfig) -> Memory:
    """The memory of one worker at its fullest moment."""
    moments = [_backward(subject, config), _reduction(subject, config), _step(subject, config)]
    if not config.gpus_per_worker:
        moments.append(_start(subject, config))
    return max(moments, key=lambda memory: memory.total_bytes)


def host_bytes(subject: Subject, config: TrainConfig) -> int:
    """What a worker keeps in its host's memory instead of its GPU's, after `train.offload`.

    Master weight, two moments and gradient in float32; with ZeRO 1 and 2 the new weights before
    they are copied back, with `all` the parameters themselves (stage_1_and_2.py, stage3.py).
    """
    if config.offload == "none":
        return 0
    weights = width_bytes(config) if config.zero < 3 or config.offload == "all" else 0
    return -(-subject.num_parameters // config.min_workers) * (16 + weights)


def start_bytes(subject: Subject) -> int:
    """The model in float32, which every worker builds whole in its host's memory, whatever is
    partitioned afterwards."""
    return 4 * subject.num_parameters


def host_peak(subject: Subject, config: TrainConfig) -> int:
    """The most that a worker on a GPU has in its host's memory, with its process: the model as it
    is built, or what is offloaded."""
    return PROCESS_BYTES + max(start_bytes(subject), host_bytes(subject, config))


def _start(subject: Subject, config: TrainConfig) -> Memory:
    """The model is built, and cut: whole in fp32, beside the share of it that is kept."""
    share = -(-subject.num_parameters // config.min_workers) if config.zero == 3 else 0
    return Memory(
        moment="as the model is built",
        parameters=start_bytes(subject) + share * width_bytes(config),
        allocator=_ARENA_BYTES,
        process=PROCESS_BYTES,
    )


def _backward(subject: Subject, config: TrainConfig) -> Memory:
    """The backward pass begins: activations, and gradients of earlier micro-batches."""
    batch = subject.batch_memory(config)
    return _memory(
        subject,
        config,
        "as the backward pass begins",
        gradients=_accumulated(subject, config),
        activations=batch.activations.total_bytes,
        loss=batch.loss,
    )


def _reduction(subject: Subject, config: TrainConfig) -> Memory:
    """The backward pass ends: every gradient, and what carries them to the other workers."""
    count, width = subject.num_parameters, width_bytes(config)
    batch = subject.batch_memory(config)
    if config.zero == 0:
        gradients = count * width
        communication = min(count, _ALLREDUCE_ELEMENTS) * width if config.min_workers > 1 else 0
    else:
        # The partition of this micro-batch, beside that of the ones before.
        gradients = _accumulated(subject, config) + count * width // config.min_workers
        flat = min(count, BUCKET_ELEMENTS)
        # On CPUs memory that was never written to is not there.
        bucket = BUCKET_ELEMENTS if config.gpus_per_worker else flat
        # ZeRO-3 scatters what it reduces, and gloo does that on a copy.
        copies = 2 if config.zero == 3 and not config.gpus_per_worker else 1
        communication = (bucket + copies * flat) * width
    return _memory(
        subject,
        config,
        "as gradients are reduced",
        gradients=gradients,
        communication=communication,
        activations=_held_of(batch, config, batch.activations),
        loss=_held(config, batch.loss, batch.loss_block),
    )


def _step(subject: Subject, config: TrainConfig) -> Memory:
    """The optimizer's step: gradients in float32. AdamW's, fused, has no temporaries."""
    count, width = subject.num_parameters, width_bytes(config)
    batch = subject.batch_memory(config)
    share = count if config.zero == 0 else -(-count // config.min_workers)
    copies = 4 * share if config.zero or width == 2 else 0
    if _is_off_gpu(config):
        copies = 0
    return _memory(
        subject,
        config,
        "in the optimizer's step",
        gradients=share * width + copies,
        optimizer=_orthogonalized(subject, config, share),
        activations=_held_of(batch, config, batch.activations),
        loss=_held(config, batch.loss, batch.loss_block),
    )


def _is_off_gpu(config: TrainConfig) -> bool:
    return config.offload != "none" and config.gpus_per_worker > 0


def num_orthogonal(subject: Subject, config: TrainConfig) -> int:
    """Parameters that follow Muon."""
    return subject.num_hidden if config.optimizer.name == "muon" else 0


def _orthogonalized(subject: Subject, config: TrainConfig, share: int) -> int:
    """What Muon's step works on: its share, a bucket of matrices, and one of them five times."""
    count, largest = num_orthogonal(subject, config), subject.largest_hidden
    if not count:
        return 0
    own = count if config.zero == 0 else count * share // subject.num_parameters
    bucket = min(count, MUON_BUCKET_ELEMENTS) if config.zero else 0
    return 4 * (min(own, largest) if config.zero == 0 else own) + 4 * (bucket + 5 * largest)


def _optimizer(subject: Subject, config: TrainConfig, share: int) -> int:
    """Master weights and moments: two for AdamW, one for what follows Muon."""
    if _is_off_gpu(config):
        return 0
    has_master = config.zero > 0 or width_bytes(config) == 2
    saved = 4 * num_orthogonal(subject, config) * share // subject.num_parameters
    # On a CPU what is offloaded lies in the same memory, with the copies that offloading makes.
    extra = host_bytes(subject, config) - 12 * share if config.offload != "none" else 0
    return share * (12 if has_master else 8) - saved + extra


def _memory(
    subject: Subject,
    config: TrainConfig,
    moment: str,
    *,
    gradients: int,
    activations: int,
    loss: int,
    communication: int = 0,
    optimizer: int = 0,
) -> Memory:
    """A moment, with what is there at all moments added."""
    count, width = subject.num_parameters, width_bytes(config)
    share = -(-count // config.min_workers) if config.zero else count
    parameters = count * width
    if config.zero == 3:
        # The share, what is gathered of it, and the flat buffers through which it is.
        gathered = min(count, _LIVE_PARAMETERS) + min(count, _PREFETCH_ELEMENTS)
        parameters = (share + gathered) * width
        if config.offload == "all":
            # On a GPU the share is not there; on a CPU `_optimizer` counts it.
            parameters -= share * width
    return Memory(
        moment=moment,
        parameters=parameters,
        gradients=gradients,
        optimizer=_optimizer(subject, config, share) + optimizer,
        communication=communication,
        activations=activations,
        loss=loss,
        allocator=_allocator(subject, config, activations + loss + communication),
        process=_GPU_CONTEXT_BYTES if config.gpus_per_worker else PROCESS_BYTES,
    )


def _allocator(subject: Subject, config: TrainConfig, transient: int) -> int:
    if config.gpus_per_worker:
        return int(transient * _GPU_HOLES)
    batch = subject.batch_memory(config)
    layers = sorted(_held_of(batch, config, layer) for layer in batch.layers)
    return _ARENA_BYTES + sum(layers[-_HOLES_LAYERS:])


def _accumulated(subject: Subject, config: TrainConfig) -> int:
    """Gradients of earlier micro-batches of the same step."""
    if config.global_batch == config.min_workers * config.micro_batch:
        return 0
    if _is_off_gpu(config) and config.zero > 1:
        return 0
    # ZeRO-1 keeps its share as views of the bucket, and so the bucket.
    parts = config.min_workers if config.zero > 1 else 1
    return subject.num_parameters * width_bytes(config) // parts


def _held_of(batch: BatchMemory, config: TrainConfig, kept: Kept) -> int:
    rows = _held(config, kept.rows, batch.row_block)
    return rows + _held(config, kept.scores, batch.score_block)


def _held(config: TrainConfig, size: int, block: int) -> int:
    """What of a size, freed in such blocks, stays with the process: malloc's heap is seldom
    given back."""
    return size if block < _HEAP_BLOCK_BYTES and not config.gpus_per_worker else 0
