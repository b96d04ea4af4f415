from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from raylm.config.model import ModelConfig
from raylm.errors import ConfigError
from raylm.model.presets import PRESETS, resolve_shape
from raylm.model.shapes import DecoderShape, EncoderDecoderShape, EncoderShape


@pytest.mark.parametrize(
    ("name", "vocab_size", "low", "high"),
    [("llama-1m", 0, 0.7e6, 1.4e6), ("llama-3m", 0, 2.5e6, 3.6e6), ("llama-10m", 0, 8e6, 12e6),
     ("llama-100m", 0, 85e6, 115e6), ("llama-1b", 0, 0.9e9, 1.2e9),
     ("t5-1m", 0, 0.8e6, 1.2e6), ("t5-10m", 8192, 9e6, 11e6), ("t5-60m", 32128, 59e6, 61e6),
     ("t5-220m", 32128, 220e6, 225e6), ("bert-1m", 0, 0.9e6, 1.2e6),
     ("bert-10m", 30522, 10e6, 12e6), ("bert-30m", 30522, 28e6, 30e6),
     ("bert-110m", 30522, 108e6, 111e6)],
)  # fmt: skip
def test_presets_have_the_size_of_their_name(
    name: str, vocab_size: int, low: float, high: float
) -> None:
    assert low < PRESETS[name].num_parameters(vocab_size) < high


def test_parameters_and_flops_of_a_decoder_by_hand() -> None:
    shape = DecoderShape(8, 16, 2, 2, 1, 32)
    # attention: q and o 8x8, k and v 8x4; MLP three times 8x16; two norms of 8; a last norm.
    layer = 2 * 64 + 2 * 32 + 3 * 128 + 16
    assert shape.num_parameters(100) == 2 * layer + 8 + 800
    assert shape.flops_per_token(100, 10) == 6 * (2 * layer + 808) + 12 * 2 * 8 * 10


def test_parameters_and_flops_of_an_encoder_decoder_by_hand() -> None:
    shape = EncoderDecoderShape(8, 16, 2, 3, 2, 3)
    attention, mlp, biases = 4 * 8 * 6, 3 * 8 * 16, 2 * 32 * 2
    layers = 2 * (attention + mlp + 16) + 3 * (2 * attention + mlp + 24) + 2 * 8
    assert shape.num_parameters(100) == layers + biases + 800
    # scores: twice two layers' own, and three layers' two attentions, of 6 each.
    assert shape.flops_per_token(100, 10) == 6 * (layers + 800) + 12 * (2 + 6) * 6 * 10
    untied = replace(shape, tie_embeddings=False)
    assert untied.num_parameters(100) == layers + biases + 1600
    assert untied.flops_per_token(100, 10) == shape.flops_per_token(100, 10)


def test_parameters_and_flops_of_an_encoder_by_hand() -> None:
    shape = EncoderShape(8, 16, 2, 2, 32)
    matrices = 2 * (4 * 72 + (8 * 16 + 16) + (16 * 8 + 8))
    tables = (100 + 32 + 2) * 8 + 16
    assert shape.num_parameters(100) == tables + matrices + 2 * 32 + 72 + 16 + 100
    classes = replace(shape, num_labels=3)
    assert classes.num_parameters(100) == tables + matrices + 2 * 32 + 72 + 27
    assert classes.flops_per_token(100, 10) == 6 * matrices + 12 * 2 * 8 * 10
    masked = round(6 * (matrices + 0.15 * (72 + 16 + 800))) + 12 * 2 * 8 * 10
    assert shape.flops_per_token(100, 10) == masked


def test_a_size_set_by_hand_wins_over_the_preset() -> None:
    shape = resolve_shape(ModelConfig(preset="llama-3m", num_layers=2, num_heads=8), 512)
    assert isinstance(shape, DecoderShape)
    assert (shape.num_layers, shape.num_heads, shape.num_kv_heads) == (2, 8, 8)
    assert shape.hidden_size == 256
    config = ModelConfig(preset="t5-1m", num_layers=3, head_size=24, tie_embeddings=False)
    t5 = resolve_shape(config, 512)
    assert t5 == EncoderDecoderShape(128, 384, 3, 3, 4, 24, False)
    t5 = resolve_shape(ModelConfig(preset="t5-1m", num_decoder_layers=1), 512)
    assert t5 == EncoderDecoderShape(128, 384, 2, 1, 4, 32)


@pytest.mark.parametrize("preset", ["llama-1m", "bert-1m"])
def test_the_context_grows_with_the_sequences(preset: str) -> None:
    shape = resolve_shape(ModelConfig(preset=preset), 2048)
    assert isinstance(shape, DecoderShape | EncoderShape)
    assert shape.max_context_tokens == 2048


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (ModelConfig(preset="llama-4m"), "unknown-preset"),
        (ModelConfig(preset="llama-3m", num_heads=7), "config-conflict"),
        (ModelConfig(preset="llama-3m", num_kv_heads=3), "config-conflict"),
        (ModelConfig(preset="bert-1m", num_heads=5), "config-conflict"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: ModelConfig, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_shape(config, 512)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        ("llama-3m", {"num_decoder_layers": 2}), ("llama-3m", {"head_size": 32}),
        ("t5-1m", {"num_kv_heads": 2}), ("t5-1m", {"max_context_tokens": 64}),
        ("bert-1m", {"num_decoder_layers": 2}), ("bert-1m", {"num_kv_heads": 2}),
        ("bert-1m", {"head_size": 32}), ("bert-1m", {"tie_embeddings": False}),
    ],
)  # fmt: skip
def test_a_size_that_the_architecture_does_not_have_is_refused_by_name(
    preset: str, size: dict[str, Any]
) -> None:
    ((key, value),) = size.items()
    with pytest.raises(ConfigError, match=rf"model\.{key}={value}: preset={preset}") as caught:
        resolve_shape(ModelConfig(preset=preset, **size), 64)
    assert caught.value.hint


def test_a_folder_has_its_own_sizes() -> None:
    with pytest.raises(ValidationError, match="remove num_layers, head_size"):
        ModelConfig(path="x", num_layers=2, head_size=8)


def test_what_is_not_set_leaves_the_key_as_it_was() -> None:
    assert "head_size" not in ModelConfig().key()
    assert ModelConfig(head_size=8).key()["head_size"] == 8
