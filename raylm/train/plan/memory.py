"""The memory of one worker, part by part, at the moment when it is fullest.

Three moments are compared: the backward pass as it begins (all activations are there), the
reduction of the gradients as it ends (all gradients are there, and copies of them), and the
optimizer's step. What DeepSpeed 0.19 keeps is read from its stage_1_and_2.py, stage3.py and
engine.py, under the settings of `raylm.train.zero`; what autograd keeps of a layer was counted
with saved-tensor hooks (transformers 5.23, torch 2.15). docs/plan.md has the errors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from raylm.config.train import TrainConfig
from raylm.model.shapes import DecoderShape
from raylm.train.plan.activations import (
    kept_by_checkpointed_layer,
    kept_by_layer,
    kept_outside_layers,
    worked_on_by_layer,
)
from raylm.train.zero import BUCKET_ELEMENTS

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
# A block of logits in raylm.train.fused_loss: as the product, and as its softmax.
_LOGITS_BLOCK_BYTES = 2 * 8 * MIB


@dataclass(frozen=True, slots=True)
class Decoder:
    """What is trained, as far as its cost goes."""

    shape: DecoderShape
    vocab_size: int
    seq_len: int

    @property
    def num_parameters(self) -> int:
        """A tied head counted once."""
        return self.shape.num_parameters(self.vocab_size)

    @property
    def flops_per_token(self) -> int:
        """Forward and backward, without what activation checkpointing does again."""
        return self.shape.flops_per_token(self.vocab_size, self.seq_len)


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


def peak_memory(decoder: Decoder, config: TrainConfig) -> Memory:
    """The memory of one worker at its fullest moment."""
    moments = (_backward(decoder, config), _reduction(decoder, config), _step(decoder, config))
    return max(moments, key=lambda memory: memory.total_bytes)


def width_bytes(config: TrainConfig) -> int:
    """Bytes of a weight, and of an activation."""
    return 2 if config.precision == "bf16" else 4


def _backward(decoder: Decoder, config: TrainConfig) -> Memory:
    """The backward pass begins: activations, and gradients of earlier micro-batches."""
    return _memory(
        decoder,
        config,
        "as the backward pass begins",
        gradients=_accumulated(decoder, config),
        activations=_activations(decoder, config),
        loss=_loss(decoder, config),
    )


def _reduction(decoder: Decoder, config: TrainConfig) -> Memory:
    """The backward pass ends: every gradient, and what carries them to the other workers."""
    count, width = decoder.num_parameters, width_bytes(config)
    if config.zero == 0:
        gradients = count * width
        communication = min(count, _ALLREDUCE_ELEMENTS) * width if config.min_workers > 1 else 0
    else:
        # The partition of this micro-batch, beside that of the ones before.
        gradients = _accumulated(decoder, config) + count * width // config.min_workers
        flat = min(count, BUCKET_ELEMENTS)
        # On CPUs memory that was never written to is not there.
        bucket = BUCKET_ELEMENTS if config.gpus_per_worker else flat
        # ZeRO-3 scatters what it reduces, and gloo does that on a copy.
        copies = 2 if config.zero == 3 and not config.gpus_per_worker else 1
        communication = (bucket + copies * flat) * width
    return _memory(
        decoder,
        config,
        "as gradients are reduced",
        gradients=gradients,
        communication=communication,
        activations=_held(decoder, config, _activations(decoder, config)),
        loss=_held(decoder, config, _loss(decoder, config)),
    )


def _step(decoder: Decoder, config: TrainConfig) -> Memory:
    """The optimizer's step: gradients in float32, and AdamW's temporaries."""
    count, width = decoder.num_parameters, width_bytes(config)
    share = count if config.zero == 0 else -(-count // config.min_workers)
    # sqrt(v) and its quotient, of one tensor at a time: with ZeRO all of a worker's share.
    one = decoder.vocab_size * decoder.shape.hidden_size if config.zero == 0 else share
    copies = 4 * share if config.zero or config.precision == "bf16" else 0
    return _memory(
        decoder,
        config,
        "in the optimizer's step",
        gradients=share * width + copies,
        optimizer=2 * 4 * one,
        activations=_held(decoder, config, _activations(decoder, config)),
        loss=_held(decoder, config, _loss(decoder, config)),
    )


def _memory(
    decoder: Decoder,
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
    count, width = decoder.num_parameters, width_bytes(config)
    share = -(-count // config.min_workers) if config.zero else count
    parameters = count * width
    if config.zero == 3:
        # The share, what is gathered of it, and the flat buffers through which it is.
        gathered = min(count, _LIVE_PARAMETERS) + min(count, _PREFETCH_ELEMENTS)
        parameters = (share + gathered) * width
    has_master = config.zero > 0 or config.precision == "bf16"
    return Memory(
        moment=moment,
        parameters=parameters,
        gradients=gradients,
        optimizer=share * (12 if has_master else 8) + optimizer,
        communication=communication,
        activations=activations,
        loss=loss,
        allocator=_allocator(decoder, config, activations + loss + communication),
        process=_GPU_CONTEXT_BYTES if config.gpus_per_worker else PROCESS_BYTES,
    )


def _allocator(decoder: Decoder, config: TrainConfig, transient: int) -> int:
    if config.gpus_per_worker:
        return int(transient * _GPU_HOLES)
    layers = min(_HOLES_LAYERS, decoder.shape.num_layers)
    return _ARENA_BYTES + _held(decoder, config, layers * _layer(decoder, config))


def _accumulated(decoder: Decoder, config: TrainConfig) -> int:
    """Gradients of earlier micro-batches of the same step."""
    if config.global_batch == config.min_workers * config.micro_batch:
        return 0
    # ZeRO-1 keeps its share as views of the bucket, and so the bucket.
    parts = config.min_workers if config.zero > 1 else 1
    return decoder.num_parameters * width_bytes(config) // parts


def _activations(decoder: Decoder, config: TrainConfig) -> int:
    shape, width, masked = decoder.shape, width_bytes(config), config.mask_documents
    tokens = config.micro_batch * decoder.seq_len
    layer = _layer(decoder, config)
    if config.activation_checkpointing:
        kept = shape.num_layers * kept_by_checkpointed_layer(shape, tokens, width=width) + layer
    else:
        kept = shape.num_layers * layer
    outside = kept_outside_layers(shape, tokens, decoder.seq_len, width=width, masked=masked)
    return kept + outside + worked_on_by_layer(shape, tokens, width=width)


def _layer(decoder: Decoder, config: TrainConfig) -> int:
    return kept_by_layer(
        decoder.shape,
        config.micro_batch * decoder.seq_len,
        decoder.seq_len,
        width=width_bytes(config),
        masked=config.mask_documents,
    )


def _loss(decoder: Decoder, config: TrainConfig) -> int:
    """Head and cross-entropy: fused, a block of rows at a time, or whole with ZeRO-3."""
    width, tokens = width_bytes(config), config.micro_batch * decoder.seq_len
    if config.zero == 3:
        # Logits, as float32, their log-softmax and its gradient.
        return tokens * decoder.vocab_size * (12 if width == 4 else 12 + width)
    head = decoder.vocab_size * decoder.shape.hidden_size
    block = min(_LOGITS_BLOCK_BYTES, tokens * decoder.vocab_size * 8)
    # Of hidden states: the last ones, those with a target, and their gradient, twice.
    return block + 4 * tokens * decoder.shape.hidden_size * width + head * (4 + 2 * width)


def _held(decoder: Decoder, config: TrainConfig, size: int) -> int:
    """What of a freed size stays with the process: malloc's heap is seldom given back."""
    if config.gpus_per_worker:
        return 0
    tokens = config.micro_batch * decoder.seq_len
    block = tokens * decoder.shape.intermediate_size * width_bytes(config)
    return size if block < _HEAP_BLOCK_BYTES else 0
