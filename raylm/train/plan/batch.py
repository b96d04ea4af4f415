"""What a micro-batch takes in a worker's memory beside weights, gradients and optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.train import TrainConfig

_LOGITS_BLOCK_BYTES = {False: 2 * 8 * 2**20, True: 2 * 256 * 2**20}
"""A block of logits in raylm.train.fused_loss, by whether on a GPU: product and softmax."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of tensors, by what they are a table of: their blocks differ in size."""

    rows: int
    """A row of numbers for each token."""
    scores: int = 0
    """A number for each pair of tokens and each head."""

    @classmethod
    def of_weights(cls, num_rows: int, num_heads: int, queries: int, keys: int, width: int) -> Kept:
        """Of what each query takes of each key, once."""
        return cls(0, num_rows * num_heads * queries * keys * width)

    def __add__(self, other: Kept) -> Kept:
        return Kept(self.rows + other.rows, self.scores + other.scores)

    def __mul__(self, times: int) -> Kept:
        return Kept(self.rows * times, self.scores * times)

    @property
    def total_bytes(self) -> int:
        """Of both."""
        return self.rows + self.scores


@dataclass(frozen=True, slots=True)
class BatchMemory:
    """One micro-batch as its backward pass begins."""

    activations: Kept
    """What autograd keeps, and the gradients that are alive while a layer is gone through."""
    layers: tuple[Kept, ...]
    """What each layer keeps where none is computed again."""
    loss: int
    """Bytes of the head and the cross-entropy."""
    loss_block: int
    """Bytes of the block that malloc's way with `loss` is judged by; so the next two."""
    row_block: int
    """Of a table of rows."""
    score_block: int = 0
    """Of a table of scores."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a model's layers are computed."""

    width: int
    """Bytes of a number, 4 or 2."""
    on_gpu: bool = False
    is_masked: bool = True
    """Documents of a row do not see each other."""
    is_checkpointed: bool = False
    """Layers are computed again in the backward pass."""
    has_dropout: bool = False

    @classmethod
    def of(cls, config: TrainConfig, *, has_dropout: bool) -> Way:
        """That of a training."""
        return cls(
            width=width_bytes(config),
            on_gpu=config.gpus_per_worker > 0,
            is_masked=config.mask_documents,
            is_checkpointed=config.activation_checkpointing,
            has_dropout=has_dropout,
        )

    @property
    def dropped(self) -> int:
        """Bytes that are kept of a number to know whether it was dropped."""
        return 0 if not self.has_dropout else 1 if self.on_gpu else self.width


def width_bytes(config: TrainConfig) -> int:
    """Bytes of a weight, and of an activation."""
    return 4 if config.precision == "fp32" else 2


def fused_loss_bytes(
    vocab_size: int, hidden_size: int, num_tokens: int, *, width: int, on_gpu: bool
) -> int:
    """Head and cross-entropy in blocks of rows (raylm.train.fused_loss), every token a target."""
    head = vocab_size * hidden_size
    block = min(_LOGITS_BLOCK_BYTES[on_gpu], num_tokens * vocab_size * 8)
    # Of hidden states: the last ones, those with a target, and their gradient, twice.
    return block + 4 * num_tokens * hidden_size * width + head * (4 + 2 * width)
