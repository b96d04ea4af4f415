"""Shapes by name, and the shape that a `model` section asks for.

Free of torch: the plan, the command line and the tests use it without loading a model.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from raylm.config.model import SIZES, ModelConfig
from raylm.errors import ConfigError, nearest
from raylm.model.folder import Architecture
from raylm.model.shapes import DecoderShape, EncoderDecoderShape, EncoderShape, Shape

# Llama: names say the parameters outside the embeddings, roughly; 1b is Llama 3.2's own shape.
# t5-60m and t5-220m are T5 small and base, bert-10m, -30m and -110m BERT mini, small and base,
# named for what they have with their own vocabularies. A gated MLP is two thirds as wide as a
# plain one of as many parameters.
PRESETS: dict[str, Shape] = {
    "llama-1m": DecoderShape(128, 384, 4, 4, 4, 512),
    "llama-3m": DecoderShape(256, 704, 4, 4, 4, 1024),
    "llama-5m": DecoderShape(288, 768, 5, 6, 6, 1024),
    "llama-10m": DecoderShape(384, 1024, 6, 6, 6, 1024),
    "llama-30m": DecoderShape(512, 1408, 10, 8, 4, 2048),
    "llama-100m": DecoderShape(768, 2048, 14, 12, 4, 2048),
    "llama-300m": DecoderShape(1024, 2816, 26, 16, 8, 4096),
    "llama-1b": DecoderShape(2048, 8192, 16, 32, 8, 8192),
    "t5-1m": EncoderDecoderShape(128, 384, 2, 2, 4, 32),
    "t5-10m": EncoderDecoderShape(256, 704, 4, 4, 4, 64),
    "t5-60m": EncoderDecoderShape(512, 1344, 6, 6, 8, 64),
    "t5-220m": EncoderDecoderShape(768, 2048, 12, 12, 12, 64),
    "bert-1m": EncoderShape(128, 512, 5, 4, 512),
    "bert-10m": EncoderShape(256, 1024, 4, 4, 512),
    "bert-30m": EncoderShape(512, 2048, 4, 8, 512),
    "bert-110m": EncoderShape(768, 3072, 12, 12, 512),
}
_WHY_NOT = {
    ("decoder", "num_decoder_layers"): "num_layers are its decoder's",
    ("decoder", "head_size"): "it is hidden_size / num_heads",
    ("encoder-decoder", "num_kv_heads"): "each head has its own keys and values",
    ("encoder-decoder", "max_context_tokens"): "its relative positions have no limit",
    ("encoder", "num_decoder_layers"): "it has no decoder",
    ("encoder", "num_kv_heads"): "each head has its own keys and values",
    ("encoder", "head_size"): "it is hidden_size / num_heads",
    ("encoder", "tie_embeddings"): "its head for masked tokens is always tied",
}


def architecture(shape: Shape) -> Architecture:
    """Which of the three architectures a shape is of."""
    if isinstance(shape, DecoderShape):
        return "decoder"
    return "encoder-decoder" if isinstance(shape, EncoderDecoderShape) else "encoder"


def preset_shape(name: str) -> Shape:
    """The shape of a preset.

    Raises:
        ConfigError: there is none of that name; the nearest is offered.
    """
    if name not in PRESETS:
        close = nearest(name, PRESETS)
        raise ConfigError(
            f"unknown model.preset {name!r}; known: {', '.join(PRESETS)}",
            code="unknown-preset",
            hint=f"did you mean {close!r}?" if close else None,
        )
    return PRESETS[name]


def resolve_shape(config: ModelConfig, seq_len: int) -> Shape:
    """The shape that a `model` section asks for, checked as a whole.

    Raises:
        ConfigError: an unknown preset (the nearest is offered), a size that its architecture
            does not have, or sizes that do not fit.
    """
    preset = preset_shape(config.preset)
    known = {field.name for field in fields(preset)}
    changed: dict[str, Any] = {
        name: value for name in SIZES if (value := getattr(config, name)) is not None
    }
    for name in changed:
        if name not in known:
            _refuse(
                f"model.{name}={changed[name]}: preset={config.preset} is of type "
                f"{architecture(preset)}, which has no {name}",
                _WHY_NOT[architecture(preset), name],
            )
    if "num_heads" in changed and "num_kv_heads" in known:
        changed.setdefault("num_kv_heads", changed["num_heads"])
    if "num_layers" in changed and "num_decoder_layers" in known:
        changed.setdefault("num_decoder_layers", changed["num_layers"])
    shape = replace(preset, **changed)
    if not isinstance(shape, EncoderDecoderShape):
        if config.max_context_tokens is None and shape.max_context_tokens < seq_len:
            shape = replace(shape, max_context_tokens=seq_len)
        _check_heads(shape)
    return shape


def _check_heads(shape: DecoderShape | EncoderShape) -> None:
    rotary = isinstance(shape, DecoderShape)
    if shape.hidden_size % (shape.num_heads * (2 if rotary else 1)):
        _refuse(
            f"model: hidden_size={shape.hidden_size} is not {'an even' if rotary else 'a'} "
            f"multiple of num_heads={shape.num_heads}",
            "rotary positions need an even head size" if rotary else "heads share the width",
        )
    if isinstance(shape, DecoderShape) and shape.num_heads % shape.num_kv_heads:
        _refuse(
            f"model: num_kv_heads={shape.num_kv_heads} does not divide num_heads={shape.num_heads}",
            f"every key and value head serves as many of the {shape.num_heads} heads",
        )


def _refuse(message: str, hint: str) -> None:
    raise ConfigError(message, code="config-conflict", hint=hint)
