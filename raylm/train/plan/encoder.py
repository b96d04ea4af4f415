"""A BERT-type encoder, and what autograd keeps of it between forward and backward pass.

Counted with saved-tensor hooks, for transformers 5.23 and torch 2.15; a test counts again. Every
layer keeps, of each token:

- attention: queries, keys, values, the output, and a log-sum-exp a head. A mask of documents is
  turned from bool to the training's type, [n, 1, L, L], in every layer anew;
- the MLP: what goes into its GELU and what comes out of it;
- each of its two norms: the sum that goes in, its mean and deviation, and the result, which is
  what the next part reads.

Where a model is trained with dropout (folders say so of themselves), what was dropped is kept as
numbers on CPUs and as bytes on GPUs, and on CPUs attention keeps its weights, [n, heads, L, L],
three times in float32: as they were, what was dropped, and what is left.

The head for hidden tokens works on those alone (raylm/train/objectives/mlm.py), one for classes
on a text's first token, which is too little to count.
"""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.train import TrainConfig
from raylm.model.folder import Architecture
from raylm.model.shapes import MASKED_SHARE, EncoderShape
from raylm.train.plan.batch import BatchMemory, Kept, Way


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder that is trained, as far as its cost goes."""

    shape: EncoderShape
    vocab_size: int
    seq_len: int
    has_dropout: bool = False

    @property
    def architecture(self) -> Architecture:
        """Which of the three it is."""
        return "encoder"

    @property
    def num_parameters(self) -> int:
        """A tied head counted once."""
        return self.shape.num_parameters(self.vocab_size)

    @property
    def num_hidden(self) -> int:
        """Four matrices of attention and two of the MLP in every layer."""
        size = self.shape.hidden_size
        return self.shape.num_layers * (4 * size**2 + 2 * self.largest_hidden)

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
        shape, way = self.shape, Way.of(config, has_dropout=self.has_dropout)
        num_rows, tokens = config.micro_batch, config.micro_batch * self.seq_len
        layer = kept_by_layer(shape, num_rows, self.seq_len, way)
        kept = layer * shape.num_layers
        if way.is_checkpointed:
            kept = Kept(shape.num_layers * tokens * shape.hidden_size * way.width) + layer
        kept += Kept(kept_outside_layers(shape, num_rows, self.seq_len, way))
        return BatchMemory(
            activations=kept + worked_on_by_layer(shape, num_rows, self.seq_len, way),
            layers=(layer,) * shape.num_layers,
            loss=0 if shape.num_labels is not None else self._loss(tokens, way),
            loss_block=num_hidden_tokens(tokens) * self.vocab_size * 4,
            row_block=tokens * shape.intermediate_size * way.width,
            score_block=4 * shape.num_heads * tokens * self.seq_len,
        )

    def _loss(self, num_tokens: int, way: Way) -> int:
        """The head for hidden tokens, its logits in float32 (or later their gradient), and the
        first gradient of all, the embedding's."""
        count, size = num_hidden_tokens(num_tokens), self.shape.hidden_size
        head = kept_by_masked_head(size, self.vocab_size, count, way)
        return head + count * self.vocab_size * 4 + self.vocab_size * size * way.width


def num_hidden_tokens(num_tokens: int) -> int:
    """Of so many tokens those that are hidden, about."""
    return round(MASKED_SHARE * num_tokens)


def kept_by_layer(shape: EncoderShape, num_rows: int, seq_len: int, way: Way) -> Kept:
    """What one layer keeps of `num_rows` rows."""
    tokens, size, width = num_rows * seq_len, shape.hidden_size, way.width
    norms = 2 * (2 * size * width + _norm_figures(way))
    mlp = 2 * shape.intermediate_size * width
    dropped = 2 * size * way.dropped
    if way.has_dropout and not way.on_gpu:
        # Attention is then torch's plain one, which works in float32.
        weights = Kept.of_weights(num_rows, shape.num_heads, seq_len, seq_len, 4)
        return Kept(tokens * (norms + size * (3 * 4 + width) + mlp + dropped)) + weights * 3
    attention = 4 * size * width + 4 * shape.num_heads
    mask = seq_len * width if way.is_masked else 0
    return Kept(tokens * (norms + attention + mask + mlp + dropped))


def kept_outside_layers(shape: EncoderShape, num_rows: int, seq_len: int, way: Way) -> int:
    """Bytes of the embeddings' sum and its norm's figures, and of the ids of tokens, positions and
    sentences, the latter two the same for all rows where documents are not told apart. What that
    norm says is the first layer's input, and nothing keeps the last one's.
    """
    norm = shape.hidden_size * (way.width + way.dropped) + _norm_figures(way)
    mask = seq_len if way.is_masked and way.is_checkpointed else 0
    rows_of_ids = 3 * num_rows if way.is_masked else num_rows + 2
    return num_rows * seq_len * (norm + mask) + 8 * rows_of_ids * seq_len


def kept_by_masked_head(hidden_size: int, vocab_size: int, num_hidden_tokens: int, way: Way) -> int:
    """Bytes that the head for hidden tokens keeps: where they are and what, what goes into its
    matrix, its GELU, its norm and the embedding, and the log-softmax and a count in float32.
    """
    states = 4 * hidden_size * way.width + _norm_figures(way)
    return num_hidden_tokens * (3 * 8 + states + 4 * vocab_size) + 4


def worked_on_by_layer(shape: EncoderShape, num_rows: int, seq_len: int, way: Way) -> Kept:
    """The gradients that are alive while a layer is gone through backwards."""
    rows = num_rows * seq_len * (2 * shape.intermediate_size + 3 * shape.hidden_size) * way.width
    if way.has_dropout and not way.on_gpu:
        return Kept(rows) + Kept.of_weights(num_rows, shape.num_heads, seq_len, seq_len, 4) * 2
    return Kept(rows)


def _norm_figures(way: Way) -> int:
    """Bytes of LayerNorm's mean and deviation of one token."""
    return 8 if way.on_gpu else 2 * way.width
