"""A Llama-type decoder, and what autograd keeps of it between forward and backward pass.

Counted with saved-tensor hooks, for transformers 5.23 and torch 2.15; a test counts again. Every
layer keeps, of each token:

- each of its two norms: the residual stream as float32, it divided by its root mean square, the
  result, and that root;
- attention: rotated queries and keys, values, the output, and a log-sum-exp a head. With a mask
  of documents keys and values are repeated to all heads, and the mask is turned from bool to the
  training's type, [n, 1, L, L], in every layer anew. Flash attention keeps no scores;
- the MLP: gate, its SiLU, up, and their product.

Where raylm computes attention and norms itself (`own`: float32 and bfloat16 on CPUs, raylm/model/),
a norm keeps its input as it is and no quotient, and attention no log-sum-exp, no mask, and keys and
values of all heads. On GPUs in 16 bits attention is told where documents begin, and has no mask
either (raylm/model/varlen_attention).

With activation checkpointing a layer keeps its input alone, and one layer at a time is computed
again.
"""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.train import TrainConfig
from raylm.model.folder import Architecture
from raylm.model.shapes import DecoderShape
from raylm.train.plan.batch import BatchMemory, Kept, fused_loss_bytes, width_bytes


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder that is trained, as far as its cost goes."""

    shape: DecoderShape
    vocab_size: int
    seq_len: int

    @property
    def architecture(self) -> Architecture:
        """Which of the three it is."""
        return "decoder"

    @property
    def num_parameters(self) -> int:
        """A tied head counted once."""
        return self.shape.num_parameters(self.vocab_size)

    @property
    def num_hidden(self) -> int:
        """All but embedding and head; norms are too few to count."""
        ends = self.vocab_size * self.shape.hidden_size * (1 if self.shape.tie_embeddings else 2)
        return self.num_parameters - ends

    @property
    def largest_hidden(self) -> int:
        """Elements of a matrix of the MLP."""
        return self.shape.hidden_size * self.shape.intermediate_size

    @property
    def flops_per_token(self) -> int:
        """Forward and backward, without what activation checkpointing does again."""
        return self.shape.flops_per_token(self.vocab_size, self.seq_len)

    def batch_memory(self, config: TrainConfig) -> BatchMemory:
        """What one micro-batch takes."""
        shape, width, on_gpu = self.shape, width_bytes(config), config.gpus_per_worker > 0
        masked = config.mask_documents and not (on_gpu and width == 2)
        tokens, own = config.micro_batch * self.seq_len, _computes_itself(config)
        layer = kept_by_layer(shape, tokens, self.seq_len, width=width, masked=masked, own=own)
        if config.activation_checkpointing:
            kept = shape.num_layers * kept_by_checkpointed_layer(shape, tokens, width=width) + layer
        else:
            kept = shape.num_layers * layer
        kept += kept_outside_layers(
            shape, tokens, self.seq_len, width=width, masked=masked, own=own
        )
        if config.zero == 3:
            # Logits, as float32, their log-softmax and its gradient.
            loss = tokens * self.vocab_size * (12 if width == 4 else 12 + width)
        else:
            loss = fused_loss_bytes(
                self.vocab_size, shape.hidden_size, tokens, width=width, on_gpu=on_gpu
            )
        block = tokens * shape.intermediate_size * width
        return BatchMemory(
            activations=Kept(kept + worked_on_by_layer(shape, tokens, width=width)),
            layers=(Kept(layer),) * shape.num_layers,
            loss=loss,
            loss_block=block,
            row_block=block,
        )


def _computes_itself(config: TrainConfig) -> bool:
    """Whether attention and norms are raylm's (raylm/model/). Attention is not where documents
    are very short, which this does not know."""
    return config.precision in ("fp32", "bf16") and not config.gpus_per_worker


def kept_by_layer(
    shape: DecoderShape,
    num_tokens: int,
    seq_len: int,
    *,
    width: int,
    masked: bool,
    own: bool = False,
) -> int:
    """Bytes that one layer keeps of `num_tokens` tokens; `width`: bytes of a number, 4 or 2."""
    norm = shape.hidden_size * (2 * width if own else 4 + 2 * width) + 4
    key_values = 2 * shape.hidden_size if masked or own else 2 * _kv_size(shape)
    attention = (2 * shape.hidden_size + key_values) * width
    attention += 0 if own else 4 * shape.num_heads
    mask = seq_len * width if masked and not own else 0
    mlp = 4 * shape.intermediate_size * width
    return num_tokens * (2 * norm + attention + mask + mlp)


def kept_by_checkpointed_layer(shape: DecoderShape, num_tokens: int, *, width: int) -> int:
    """Bytes that one layer keeps if it is computed again: its input."""
    return num_tokens * shape.hidden_size * width


def kept_outside_layers(
    shape: DecoderShape,
    num_tokens: int,
    seq_len: int,
    *,
    width: int,
    masked: bool,
    own: bool = False,
) -> int:
    """Bytes of the last norm, of the rotary tables, and of the mask itself."""
    norm = num_tokens * (shape.hidden_size * (width if own else 4 + width) + 4)
    head_size = shape.hidden_size // shape.num_heads
    rotary = 2 * (num_tokens if masked else seq_len) * head_size * width
    return norm + rotary + (num_tokens * seq_len if masked and not own else 0)


def worked_on_by_layer(shape: DecoderShape, num_tokens: int, *, width: int) -> int:
    """Bytes of the gradients that are alive while a layer is gone through backwards."""
    return num_tokens * (3 * shape.intermediate_size + 3 * shape.hidden_size) * width


def _kv_size(shape: DecoderShape) -> int:
    return shape.hidden_size // shape.num_heads * shape.num_kv_heads
