import pytest
import torch

from raylm.compress.int8 import quantize_weight
from raylm.errors import ModelError


def test_each_channel_has_its_own_scale_and_rounds_to_nearest() -> None:
    weight = torch.tensor([[127.0, -64.4, 0.6], [1.27, 0.004, -0.016]])
    found = quantize_weight(weight)
    assert found.integers.tolist() == [[127, -64, 1], [127, 0, -2]]
    assert found.scale[:, 0].tolist() == pytest.approx([1.0, 0.01])


def test_the_error_is_at_most_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 100)
    found = quantize_weight(weight)
    error = (found.dequantized() - weight).abs()
    assert bool((error <= found.scale * 0.5 + 1e-7).all())
    assert found.integers.abs().max() == 127


def test_a_channel_of_zeros_stays_zero() -> None:
    found = quantize_weight(torch.zeros(2, 3))
    assert found.dequantized().abs().max() == 0
    assert found.scale.tolist() == [[1.0], [1.0]]


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"layer\.weight"):
        quantize_weight(torch.tensor([[1.0, float("nan")]]), "layer.weight")
