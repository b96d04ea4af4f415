"""What is trained, as far as its cost goes: one of three architectures, from a `model` section."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.model.describe import shape_of
from raylm.model.folder import Architecture, read_config
from raylm.model.presets import resolve_shape
from raylm.model.shapes import DecoderShape, EncoderDecoderShape, EncoderShape, Shape
from raylm.train.plan.batch import BatchMemory
from raylm.train.plan.decoder import Decoder
from raylm.train.plan.encoder import Encoder
from raylm.train.plan.encoder_decoder import EncoderDecoder

_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_context_tokens": "max_position_embeddings",
}
# Decoders whose layers are Llama's, up to biases and norms of heads.
_LLAMA_TYPES = {"llama", "mistral", "qwen2", "qwen3"}
# Where a folder says that its model is trained with dropout; each is 0.1 where it is not said.
_DROPOUTS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "t5": ("dropout_rate",),
}


class Subject(Protocol):
    """A model and the rows that it learns from, as memory, disk and time need them."""

    @property
    def architecture(self) -> Architecture:
        """Which of the three it is."""

    @property
    def seq_len(self) -> int:
        """Tokens of a row; of pairs those of the target."""

    @property
    def num_parameters(self) -> int:
        """What is tied counted once."""

    @property
    def num_hidden(self) -> int:
        """Parameters of the matrices that are neither an embedding nor a head."""

    @property
    def largest_hidden(self) -> int:
        """Elements of the largest of those matrices."""

    @property
    def flops_per_token(self) -> int:
        """Forward and backward, without what activation checkpointing does again."""

    def batch_memory(self, config: TrainConfig) -> BatchMemory:
        """What one micro-batch takes."""


def subject_of(
    model: ModelConfig,
    *,
    seq_len: int,
    vocab_size: int,
    source_len: int | None = None,
    num_labels: int | None = None,
) -> Subject | None:
    """What is trained; None for a model of unknown cost.

    Args:
        model: `path`, if it has one, is absolute or relative to the working folder.
        vocab_size: the tokenizer's; a folder's own is taken instead.
        source_len: of pairs, tokens of a row on the encoder's side; None takes `seq_len`.
        num_labels: of labelled texts, the classes.

    Raises:
        ConfigError: the shape does not fit.
        ModelError: the folder has no config.json that can be read.
    """
    shape: Shape | None
    if model.path is None:
        shape, has_dropout = resolve_shape(model, seq_len), False
    else:
        config = read_config(Path(model.path))
        is_llama = config.get("model_type") in _LLAMA_TYPES
        shape = _llama_shape(config) if is_llama else shape_of(config)
        has_dropout = _has_dropout(config)
        vocab_size = int(config.get("vocab_size", vocab_size))
    if isinstance(shape, DecoderShape):
        return Decoder(shape, vocab_size, seq_len)
    if isinstance(shape, EncoderDecoderShape):
        return EncoderDecoder(shape, vocab_size, seq_len, source_len or seq_len, has_dropout)
    if isinstance(shape, EncoderShape):
        # The head is what the rows are for, whatever the folder was for before.
        return Encoder(replace(shape, num_labels=num_labels), vocab_size, seq_len, has_dropout)
    return None


def _llama_shape(config: dict[str, Any]) -> DecoderShape | None:
    """Of a decoder whose layers are near enough."""
    if any(not isinstance(config.get(key), int) for key in _KEYS.values()):
        return None
    sizes = {name: config[key] for name, key in _KEYS.items()}
    return DecoderShape(
        **sizes,
        num_kv_heads=config.get("num_key_value_heads") or sizes["num_heads"],
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _has_dropout(config: dict[str, Any]) -> bool:
    names = _DROPOUTS.get(str(config.get("model_type")), ())
    return any(config.get(name, 0.1) > 0 for name in names)
