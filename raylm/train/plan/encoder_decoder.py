"""A T5-type encoder-decoder, and what autograd keeps of it between forward and backward pass.

Counted with saved-tensor hooks, for transformers 5.23 and torch 2.15; a test counts again. Every
layer keeps, of each token of its row:

- each norm: the residual stream as float32 (in bf16 beside itself), it divided by its root mean
  square, the result, and that root;
- attention: queries, keys, values and the output;
- the MLP: its GELU is one of elementwise operations, which keep four tables; then that, the
  linear half, and their product.

The bias for distances is added to the scores, and learns: torch's fast kernels for CPUs have no
gradient for it. Its plain one keeps the weights of attention, [n, heads, L, L], in float32, and
queries, keys and values too. The attention of the decoder to the encoder has a bias of zeros, with
which the mask becomes a table as large, in the training's type; with activation checkpointing it
is taken to learn like the others. On GPUs a fast kernel is assumed to
keep each mask with its bias.

Dropout (of folders that say so) is kept as numbers on CPUs and as bytes on GPUs, and makes plain
attention keep its weights three times: as they were, what was dropped, and what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.train import TrainConfig
from raylm.model.folder import Architecture
from raylm.model.shapes import EncoderDecoderShape
from raylm.train.plan.batch import BatchMemory, Kept, Way, fused_loss_bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a micro-batch, on both sides."""

    num_rows: int
    seq_len: int
    """Tokens of a row of targets."""
    source_len: int
    """Tokens of a row of sources."""

    @property
    def targets(self) -> int:
        """Tokens that the decoder reads."""
        return self.num_rows * self.seq_len

    @property
    def sources(self) -> int:
        """Tokens that the encoder reads."""
        return self.num_rows * self.source_len


@dataclass(frozen=True, slots=True)
class EncoderDecoder:
    """An encoder-decoder that is trained, as far as its cost goes."""

    shape: EncoderDecoderShape
    vocab_size: int
    seq_len: int
    """Tokens of a row of targets."""
    source_len: int
    """Tokens of a row of sources."""
    has_dropout: bool = False

    @property
    def architecture(self) -> Architecture:
        """Which of the three it is."""
        return "encoder-decoder"

    @property
    def num_parameters(self) -> int:
        """A tied head counted once."""
        return self.shape.num_parameters(self.vocab_size)

    @property
    def num_hidden(self) -> int:
        """All but embedding, head, norms, and what is learned of distances."""
        parts = self.shape.parameters(self.vocab_size)
        matrices = sum(size for name, size in parts.items() if name.endswith(("attention", "mlp")))
        return matrices - self.shape.num_distances

    @property
    def largest_hidden(self) -> int:
        """Elements of a matrix of the MLP, or of attention."""
        shape = self.shape
        return shape.hidden_size * max(shape.intermediate_size, shape.num_heads * shape.head_size)

    @property
    def flops_per_token(self) -> int:
        """Of a target's token and its share of the source's, forward and backward, without what
        activation checkpointing does again."""
        return self.shape.flops_per_token(self.vocab_size, self.seq_len, self.source_len)

    def batch_memory(self, config: TrainConfig) -> BatchMemory:
        """What one micro-batch takes."""
        shape, way = self.shape, Way.of(config, has_dropout=self.has_dropout)
        rows = Rows(config.micro_batch, self.seq_len, self.source_len)
        encoder = kept_by_encoder_layer(shape, rows, way)
        decoder = kept_by_decoder_layer(shape, rows, way)
        if way.is_checkpointed:
            again = max(encoder, decoder, key=lambda layer: layer.total_bytes)
            kept = kept_by_checkpointed_layers(shape, rows, way) + again
        else:
            kept = encoder * shape.num_layers + decoder * shape.num_decoder_layers
        kept += Kept(kept_outside_layers(shape, rows, way))
        longest = max(self.seq_len, self.source_len)
        row_block = config.micro_batch * longest * shape.intermediate_size * way.width
        return BatchMemory(
            activations=kept + worked_on_by_layer(shape, rows, way),
            layers=(encoder,) * shape.num_layers + (decoder,) * shape.num_decoder_layers,
            loss=self._loss(rows, way, whole_logits=config.zero == 3),
            loss_block=row_block,
            row_block=row_block,
            score_block=4 * config.micro_batch * shape.num_heads * longest**2,
        )

    def _loss(self, rows: Rows, way: Way, *, whole_logits: bool) -> int:
        """Head and cross-entropy: fused, or whole with ZeRO-3."""
        if whole_logits:
            # Logits, those of targets as float32, and their log-softmax (later its gradient).
            return rows.targets * self.vocab_size * (8 + way.width)
        size = self.shape.hidden_size
        return fused_loss_bytes(
            self.vocab_size, size, rows.targets, width=way.width, on_gpu=way.on_gpu
        )


def kept_by_encoder_layer(shape: EncoderDecoderShape, rows: Rows, way: Way) -> Kept:
    """What one layer of the encoder keeps."""
    row = 2 * _norm(shape, way) + _mlp(shape, way) + shape.hidden_size * way.dropped
    attention = _attention(shape, rows.num_rows, rows.source_len, rows.source_len, way, plain=True)
    return Kept(rows.sources * row) + attention


def kept_by_decoder_layer(shape: EncoderDecoderShape, rows: Rows, way: Way) -> Kept:
    """What one layer of the decoder keeps, the attention to the encoder with it."""
    row = 3 * _norm(shape, way) + _mlp(shape, way) + 2 * shape.hidden_size * way.dropped
    own = _attention(shape, rows.num_rows, rows.seq_len, rows.seq_len, way, plain=True)
    plain = way.is_checkpointed or way.has_dropout
    cross = _attention(shape, rows.num_rows, rows.seq_len, rows.source_len, way, plain=plain)
    return Kept(rows.targets * row) + own + cross


def kept_by_checkpointed_layers(shape: EncoderDecoderShape, rows: Rows, way: Way) -> Kept:
    """What all layers keep if each is computed again: their inputs, and one bias a stack and kind
    of attention, which every layer but the first is given.
    """
    inputs = shape.num_layers * rows.sources + shape.num_decoder_layers * rows.targets
    pairs = rows.source_len**2 if shape.num_layers > 1 else 0
    if shape.num_decoder_layers > 1:
        pairs += rows.seq_len * (rows.seq_len + rows.source_len)
    return Kept((inputs * shape.hidden_size + pairs * shape.num_heads) * way.width)


def kept_outside_layers(shape: EncoderDecoderShape, rows: Rows, way: Way) -> int:
    """Bytes of ids, embeddings' dropout, the last norms (what the encoder's says is read by every
    layer of the decoder), masks, and distances. With activation checkpointing the first layers
    make the distances again, and the mask of the attention to the encoder is kept.
    """
    size, width = shape.hidden_size, way.width
    ids = 8 * (rows.sources + rows.targets)
    dropped = 2 * size * way.dropped * (rows.sources + rows.targets)
    norms = (rows.sources + rows.targets) * _norm(shape, way) - rows.targets * size * width
    masks = rows.sources * rows.source_len + rows.targets * rows.seq_len
    if way.is_checkpointed:
        return ids + dropped + norms + masks + rows.targets * rows.source_len
    return ids + dropped + norms + masks + 8 * (rows.source_len**2 + rows.seq_len**2)


def worked_on_by_layer(shape: EncoderDecoderShape, rows: Rows, way: Way) -> Kept:
    """The gradients that are alive while a layer is gone through backwards."""
    tokens = max(rows.targets, rows.sources)
    row = (3 * shape.intermediate_size + 3 * shape.hidden_size) * way.width
    longest = max(rows.seq_len, rows.source_len)
    width = way.width if way.on_gpu else 4
    weights = Kept.of_weights(rows.num_rows, shape.num_heads, longest, longest, width)
    return Kept(tokens * row) + weights * 2


def _norm(shape: EncoderDecoderShape, way: Way) -> int:
    """Bytes of a norm of one token."""
    beside = 0 if way.width == 4 else way.width
    return shape.hidden_size * (4 + beside + 2 * way.width) + 4


def _mlp(shape: EncoderDecoderShape, way: Way) -> int:
    """Bytes of the MLP of one token; without a gate its ReLU keeps what it says, which the next
    matrix reads if nothing of it is dropped."""
    tables = 7 if shape.gated else 2 if way.has_dropout else 1
    dropped = (shape.intermediate_size + shape.hidden_size) * way.dropped
    return tables * shape.intermediate_size * way.width + dropped


def _attention(
    shape: EncoderDecoderShape, num_rows: int, queries: int, keys: int, way: Way, *, plain: bool
) -> Kept:
    """Of so many queries and keys a row; `plain`: torch has no fast kernel for it on a CPU."""
    inner, width = shape.num_heads * shape.head_size, way.width
    read = num_rows * inner * (queries + 2 * keys)
    out = num_rows * inner * queries * width
    if plain and not way.on_gpu:
        weights = Kept.of_weights(num_rows, shape.num_heads, queries, keys, 4)
        return Kept(4 * read + out) + weights * (3 if way.has_dropout else 1)
    # The mask with its bias, which the kernel keeps, and a log-sum-exp a head.
    mask = Kept.of_weights(num_rows, shape.num_heads, queries, keys, width)
    return Kept(width * read + out + 4 * shape.num_heads * num_rows * queries) + mask
