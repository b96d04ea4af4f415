import pytest

from raylm.config.compress import GateConfig
from raylm.errors import GateError
from raylm.evaluate.compare import hold_gate, violations
from raylm.evaluate.figures import Figure

GOOD = {"kl": 0.01, "top1_agreement": 0.99, "perplexity_ratio": 1.0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kl": 0.06}, "max_kl=0.05"),
        ({"top1_agreement": 0.9}, "min_top1_agreement=0.95"),
        ({"perplexity_ratio": 1.03}, "max_perplexity_ratio=1.02"),
        ({"kl": float("nan")}, "max_kl"),
    ],
)
def test_each_limit_refuses_by_name(change: dict[str, float], named: str) -> None:
    assert violations(GOOD, GateConfig()) == []
    (found,) = violations({**GOOD, **change}, GateConfig())
    assert named in found


def test_the_gate_has_an_exit_code_of_its_own() -> None:
    figures = {name: Figure(value, value, value) for name, value in GOOD.items()}
    hold_gate(figures, GateConfig(), what="x")
    with pytest.raises(GateError) as caught:
        hold_gate(figures, GateConfig(max_kl=0.001), what="int8 of m")
    assert caught.value.exit_code == 4
    assert "int8 of m is not accepted" in caught.value.message
