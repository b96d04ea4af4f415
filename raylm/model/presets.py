"""Shapes of Llama-type decoders by name, and the sizes that follow from a shape.

Free of torch: the plan, the command line and the tests use it without loading a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from raylm.config.model import ModelConfig
from raylm.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama-type decoder (arXiv 2302.13971): RMSNorm, SwiGLU, rotary positions."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    max_context_tokens: int
    tie_embeddings: bool = True

    def num_parameters(self, vocab_size: int) -> int:
        """Trainable parameters, a tied head counted once."""
        head = self.hidden_size // self.num_heads
        attention = self.hidden_size * head * 2 * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        embeddings = vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + self.hidden_size + embeddings

    def flops_per_token(self, vocab_size: int, seq_len: int) -> int:
        """Floating-point operations to train on one token (forward and backward).

        Six per parameter that is multiplied, and the attention scores (PaLM, appendix B).
        """
        embedding_only = 0 if self.tie_embeddings else vocab_size * self.hidden_size
        multiplied = self.num_parameters(vocab_size) - embedding_only
        return 6 * multiplied + 12 * self.num_layers * self.hidden_size * seq_len


# Names say the parameters outside the embeddings, roughly; 1b is Llama 3.2's own shape.
PRESETS: dict[str, Shape] = {
    "llama-1m": Shape(128, 384, 4, 4, 4, 512),
    "llama-3m": Shape(256, 704, 4, 4, 4, 1024),
    "llama-5m": Shape(288, 768, 5, 6, 6, 1024),
    "llama-10m": Shape(384, 1024, 6, 6, 6, 1024),
    "llama-30m": Shape(512, 1408, 10, 8, 4, 2048),
    "llama-100m": Shape(768, 2048, 14, 12, 4, 2048),
    "llama-300m": Shape(1024, 2816, 26, 16, 8, 4096),
    "llama-1b": Shape(2048, 8192, 16, 32, 8, 8192),
}


def resolve_shape(config: ModelConfig, seq_len: int) -> Shape:
    """The shape that a `model` section asks for, checked as a whole.

    Raises:
        ConfigError: an unknown preset (the nearest is offered), or sizes that do not fit.
    """
    if config.preset not in PRESETS:
        close = nearest(config.preset, PRESETS)
        raise ConfigError(
            f"unknown model.preset {config.preset!r}; known: {', '.join(PRESETS)}",
            code="unknown-preset",
            hint=f"did you mean {close!r}?" if close else None,
        )
    preset = PRESETS[config.preset]
    changed: dict[str, Any] = {
        name: value
        for name in Shape.__slots__
        if (value := getattr(config, name, None)) is not None
    }
    if "num_heads" in changed and "num_kv_heads" not in changed:
        changed["num_kv_heads"] = changed["num_heads"]
    shape = replace(preset, **changed)
    if config.max_context_tokens is None and shape.max_context_tokens < seq_len:
        shape = replace(shape, max_context_tokens=seq_len)
    if shape.hidden_size % (2 * shape.num_heads):
        raise ConfigError(
            f"model: hidden_size={shape.hidden_size} is not an even multiple of "
            f"num_heads={shape.num_heads}",
            code="config-conflict",
            hint="rotary positions need an even head size",
        )
    if shape.num_heads % shape.num_kv_heads:
        raise ConfigError(
            f"model: num_kv_heads={shape.num_kv_heads} does not divide num_heads={shape.num_heads}",
            code="config-conflict",
        )
    return shape
