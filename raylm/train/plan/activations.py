"""What autograd keeps of a Llama-type decoder between its forward and its backward pass.

Counted with saved-tensor hooks, for transformers 5.23 and torch 2.15; a test counts again. Every
layer keeps, of each token:

- each of its two norms: the residual stream as float32, it divided by its root mean square, the
  result, and that root;
- attention: rotated queries and keys, values, the output, and a log-sum-exp a head. With a mask
  of documents keys and values are repeated to all heads, and the mask is turned from bool to the
  training's type, [n, 1, L, L], in every layer anew. Flash attention keeps no scores;
- the MLP: gate, its SiLU, up, and their product.

With activation checkpointing a layer keeps its input alone, and one layer at a time is computed
again.
"""

from __future__ import annotations

from raylm.model.shapes import DecoderShape


def kept_by_layer(
    shape: DecoderShape, num_tokens: int, seq_len: int, *, width: int, masked: bool
) -> int:
    """Bytes that one layer keeps of `num_tokens` tokens; `width`: bytes of a number, 4 or 2."""
    norm = shape.hidden_size * (4 + 2 * width) + 4
    key_values = 2 * shape.hidden_size if masked else 2 * _kv_size(shape)
    attention = (2 * shape.hidden_size + key_values) * width + 4 * shape.num_heads
    mask = seq_len * width if masked else 0
    mlp = 4 * shape.intermediate_size * width
    return num_tokens * (2 * norm + attention + mask + mlp)


def kept_by_checkpointed_layer(shape: DecoderShape, num_tokens: int, *, width: int) -> int:
    """Bytes that one layer keeps if it is computed again: its input."""
    return num_tokens * shape.hidden_size * width


def kept_outside_layers(
    shape: DecoderShape, num_tokens: int, seq_len: int, *, width: int, masked: bool
) -> int:
    """Bytes of the last norm, of the rotary tables, and of the mask itself."""
    norm = num_tokens * (shape.hidden_size * (4 + width) + 4)
    head_size = shape.hidden_size // shape.num_heads
    rotary = 2 * (num_tokens if masked else seq_len) * head_size * width
    return norm + rotary + (num_tokens * seq_len if masked else 0)


def worked_on_by_layer(shape: DecoderShape, num_tokens: int, *, width: int) -> int:
    """Bytes of the gradients that are alive while a layer is gone through backwards."""
    return num_tokens * (3 * shape.intermediate_size + 3 * shape.hidden_size) * width


def _kv_size(shape: DecoderShape) -> int:
    return shape.hidden_size // shape.num_heads * shape.num_kv_heads
