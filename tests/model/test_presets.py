import pytest

from raylm.config.model import ModelConfig
from raylm.errors import ConfigError
from raylm.model.presets import PRESETS, Shape, resolve_shape


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("llama-1m", 0.7e6, 1.4e6), ("llama-3m", 2.5e6, 3.6e6), ("llama-10m", 8e6, 12e6),
     ("llama-100m", 85e6, 115e6), ("llama-1b", 0.9e9, 1.2e9)],
)  # fmt: skip
def test_presets_have_the_size_of_their_name(name: str, low: float, high: float) -> None:
    shape = PRESETS[name]
    assert low < shape.num_parameters(0) < high


def test_parameters_and_flops_by_hand() -> None:
    shape = Shape(8, 16, 2, 2, 1, 32)
    # attention: q and o 8x8, k and v 8x4; MLP three times 8x16; two norms of 8; a last norm.
    layer = 2 * 64 + 2 * 32 + 3 * 128 + 16
    assert shape.num_parameters(100) == 2 * layer + 8 + 800
    assert shape.flops_per_token(100, 10) == 6 * (2 * layer + 808) + 12 * 2 * 8 * 10


def test_a_size_set_by_hand_wins_over_the_preset() -> None:
    shape = resolve_shape(ModelConfig(preset="llama-3m", num_layers=2, num_heads=8), 512)
    assert (shape.num_layers, shape.num_heads, shape.num_kv_heads) == (2, 8, 8)
    assert shape.hidden_size == 256


def test_the_context_grows_with_the_sequences() -> None:
    assert resolve_shape(ModelConfig(preset="llama-1m"), 2048).max_context_tokens == 2048


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (ModelConfig(preset="llama-4m"), "unknown-preset"),
        (ModelConfig(preset="llama-3m", num_heads=7), "config-conflict"),
        (ModelConfig(preset="llama-3m", num_kv_heads=3), "config-conflict"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: ModelConfig, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_shape(config, 512)
    assert caught.value.code == code
