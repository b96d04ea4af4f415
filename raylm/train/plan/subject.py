"""From a `model` section to the sizes that its cost follows from."""

from __future__ import annotations

from pathlib import Path

from raylm.config.model import ModelConfig
from raylm.model.folder import read_config
from raylm.model.presets import resolve_shape
from raylm.model.shapes import DecoderShape
from raylm.train.plan.memory import Decoder

_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_context_tokens": "max_position_embeddings",
}
# Decoders whose layers are Llama's, up to biases and norms of heads.
_LLAMA_TYPES = {"llama", "mistral", "qwen2", "qwen3"}


def decoder_of(model: ModelConfig, *, seq_len: int, vocab_size: int) -> Decoder | None:
    """The sizes of what is trained; None for another architecture than Llama's.

    Args:
        model: `path`, if it has one, is absolute or relative to the working folder.
        vocab_size: the tokenizer's; a folder's own is taken instead.

    Raises:
        ConfigError: the shape does not fit.
        ModelError: the folder has no config.json that can be read.
    """
    if model.path is None:
        found = resolve_shape(model, seq_len)
        # The memory of the other architectures is not modelled.
        return Decoder(found, vocab_size, seq_len) if isinstance(found, DecoderShape) else None
    config = read_config(Path(model.path))
    if config.get("model_type") not in _LLAMA_TYPES or any(
        not isinstance(config.get(key), int) for key in _KEYS.values()
    ):
        return None
    sizes = {name: config[key] for name, key in _KEYS.items()}
    shape = DecoderShape(
        **sizes,
        num_kv_heads=config.get("num_key_value_heads") or sizes["num_heads"],
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
    return Decoder(shape, int(config.get("vocab_size", vocab_size)), seq_len)
