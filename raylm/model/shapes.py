"""Sizes of the three architectures, and what follows from them: parameters and FLOPs.

Free of torch: the plan, the command line and the tests use it without loading a model.
`parameters` cuts a model into parts named `stack.part`; a tied matrix is counted once, as an
embedding. Added up, the parts are exactly the parameters of the transformers class.
"""

from __future__ import annotations

from dataclasses import dataclass

RELATIVE_BUCKETS = 32
"""Distances that T5 tells apart, each with a bias for every head (arXiv 1910.10683)."""
TOKEN_TYPES = 2
"""BERT's embeddings of first and second sentence; raylm uses the first alone."""
MASKED_SHARE = 0.15
"""Of the tokens, how many a masked language model is asked for (BERT, arXiv 1810.04805)."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a Llama-type decoder (arXiv 2302.13971): RMSNorm, SwiGLU, rotary positions."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_context_tokens: int
    tie_embeddings: bool = True

    def parameters(self, vocab_size: int) -> dict[str, int]:
        """Trainable parameters of each part."""
        head = self.hidden_size // self.num_heads
        attention = self.hidden_size * head * 2 * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return {
            "embedding.tokens": vocab_size * self.hidden_size,
            "decoder.attention": self.num_layers * attention,
            "decoder.mlp": self.num_layers * mlp,
            "decoder.norms": (2 * self.num_layers + 1) * self.hidden_size,
            "head.tokens": 0 if self.tie_embeddings else vocab_size * self.hidden_size,
        }

    def num_parameters(self, vocab_size: int) -> int:
        """Trainable parameters, a tied head counted once."""
        return sum(self.parameters(vocab_size).values())

    def flops_per_token(self, vocab_size: int, seq_len: int) -> int:
        """Floating-point operations to train on one token (forward and backward).

        Six per parameter that is multiplied, and the attention scores (PaLM, appendix B).
        """
        embedding_only = 0 if self.tie_embeddings else vocab_size * self.hidden_size
        multiplied = self.num_parameters(vocab_size) - embedding_only
        return 6 * multiplied + 12 * self.num_layers * self.hidden_size * seq_len


@dataclass(frozen=True, slots=True)
class EncoderDecoderShape:
    """Sizes of a T5-type encoder-decoder, version 1.1: RMSNorm, gated GELU, relative positions
    (arXiv 1910.10683, 2002.05202). The heads' width is free of the residual stream's.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    """Of the encoder."""
    num_decoder_layers: int
    num_heads: int
    head_size: int
    tie_embeddings: bool = True
    gated: bool = True
    """Two matrices into the MLP, one of them its gate; T5's first version has one."""

    def parameters(self, vocab_size: int) -> dict[str, int]:
        """Trainable parameters of each part."""
        attention = 4 * self.hidden_size * self.num_heads * self.head_size
        bias = self.num_distances // 2
        mlp = (3 if self.gated else 2) * self.hidden_size * self.intermediate_size
        return {
            "embedding.tokens": vocab_size * self.hidden_size,
            "encoder.attention": self.num_layers * attention + bias,
            "encoder.mlp": self.num_layers * mlp,
            "encoder.norms": (2 * self.num_layers + 1) * self.hidden_size,
            "decoder.attention": self.num_decoder_layers * attention + bias,
            "decoder.cross_attention": self.num_decoder_layers * attention,
            "decoder.mlp": self.num_decoder_layers * mlp,
            "decoder.norms": (3 * self.num_decoder_layers + 1) * self.hidden_size,
            "head.tokens": 0 if self.tie_embeddings else vocab_size * self.hidden_size,
        }

    def num_parameters(self, vocab_size: int) -> int:
        """Trainable parameters, a tied embedding counted once."""
        return sum(self.parameters(vocab_size).values())

    @property
    def num_distances(self) -> int:
        """Parameters that are biases for distances, in both stacks."""
        return 2 * RELATIVE_BUCKETS * self.num_heads

    def flops_per_token(self, vocab_size: int, seq_len: int, source_len: int | None = None) -> int:
        """Floating-point operations to train on one target token and its share of the source;
        counted as a decoder's are.

        Args:
            seq_len: tokens of a row of targets.
            source_len: tokens of a row of sources; None is as many.
        """
        source_len = source_len or seq_len
        parts = self.parameters(vocab_size)
        # Keys and values of the attention to the encoder are made of the source.
        of_source = parts["encoder.attention"] + parts["encoder.mlp"] + parts["encoder.norms"]
        of_source += parts["decoder.cross_attention"] // 2 - self.num_distances // 2
        embedding_only = 0 if self.tie_embeddings else vocab_size * self.hidden_size
        multiplied = sum(parts.values()) - embedding_only - self.num_distances
        pairs = self.num_layers * source_len**2
        pairs += self.num_decoder_layers * seq_len * (seq_len + source_len)
        row = 6 * (of_source * source_len + (multiplied - of_source) * seq_len)
        return (row + 12 * pairs * self.num_heads * self.head_size) // seq_len


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """Sizes of a BERT-type encoder (arXiv 1810.04805): LayerNorm, GELU, absolute positions."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_context_tokens: int
    num_labels: int | None = None
    """Classes of its head; None is a head for masked tokens, tied to the embedding."""

    def parameters(self, vocab_size: int) -> dict[str, int]:
        """Trainable parameters of each part."""
        width, inner = self.hidden_size, self.intermediate_size
        dense = width * width + width
        tables = {
            "embedding.tokens": vocab_size * width,
            "embedding.positions": self.max_context_tokens * width,
            "embedding.types": TOKEN_TYPES * width,
            "embedding.norms": 2 * width,
            "encoder.attention": self.num_layers * 4 * dense,
            "encoder.mlp": self.num_layers * (2 * width * inner + inner + width),
            "encoder.norms": self.num_layers * 4 * width,
        }
        if self.num_labels is None:
            return {**tables, "head.transform": dense + 2 * width, "head.tokens": vocab_size}
        classes = self.num_labels * (width + 1)
        return {**tables, "head.pooler": dense, "head.classes": classes}

    def num_parameters(self, vocab_size: int) -> int:
        """Trainable parameters, a tied head counted once."""
        return sum(self.parameters(vocab_size).values())

    def flops_per_token(self, vocab_size: int, seq_len: int) -> int:
        """Floating-point operations to train on one token (forward and backward).

        The head for masked tokens works on their share alone; one for classes on one token of
        a text, which is not counted.
        """
        parts = self.parameters(vocab_size)
        multiplied: float = parts["encoder.attention"] + parts["encoder.mlp"]
        if self.num_labels is None:
            head = parts["head.transform"] + vocab_size * self.hidden_size
            multiplied += MASKED_SHARE * head
        return round(6 * multiplied) + 12 * self.num_layers * self.hidden_size * seq_len


Shape = DecoderShape | EncoderDecoderShape | EncoderShape
