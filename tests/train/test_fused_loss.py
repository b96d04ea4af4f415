import pytest
import torch
import torch.nn.functional as F

import raylm.train.fused_loss as module
from raylm.train.fused_loss import fused_loss


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_loss_and_gradients_are_those_of_plain_cross_entropy(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several blocks, the last short.
    monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 4 * 101 * 16)
    torch.manual_seed(0)
    hidden = torch.randn(rows, 24, requires_grad=True)
    head = torch.randn(101, 24, requires_grad=True)
    targets = torch.randint(0, 101, (rows,))
    plain = F.cross_entropy(hidden @ head.T, targets, reduction="sum")
    expected = torch.autograd.grad(plain * 0.5, (hidden, head))
    fused = fused_loss(hidden, head, targets)
    found = torch.autograd.grad(fused * 0.5, (hidden, head))
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(64, 24), torch.randn(101, 24) * 0.1
    targets = torch.randint(0, 101, (64,))
    exact = fused_loss(hidden, head, targets)
    low = fused_loss(hidden.bfloat16(), head.bfloat16(), targets)
    assert abs(float(exact) - float(low)) / float(exact) < 0.01
