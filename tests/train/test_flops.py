import json
from pathlib import Path

import pytest

from raylm.config.model import ModelConfig
from raylm.config.train import ObjectiveName, TrainConfig
from raylm.model.presets import resolve_shape
from raylm.model.shapes import EncoderDecoderShape
from raylm.train.flops import Flops, flops_of


def of(model: ModelConfig, objective: ObjectiveName = "causal", **changes: object) -> Flops | None:
    config = TrainConfig(**changes)  # type: ignore[arg-type]
    return flops_of(model, config, objective, seq_len=128, vocab_size=1000)


@pytest.mark.parametrize(
    ("preset", "objective"),
    [("llama-1m", "causal"), ("t5-1m", "seq2seq"), ("bert-1m", "mlm")],
)
def test_a_row_full_of_targets_costs_what_the_model_says(
    preset: str, objective: ObjectiveName
) -> None:
    model = ModelConfig(preset=preset)
    found, shape = of(model, objective), resolve_shape(model, 128)
    assert found is not None
    assert found.of_step(1, 1) == shape.flops_per_token(1000, 128)


def test_a_source_of_another_length_costs_its_share() -> None:
    model, config = ModelConfig(preset="t5-1m"), TrainConfig()
    even, longer = (
        flops_of(model, config, "seq2seq", seq_len=128, vocab_size=1000, source_len=length)
        for length in (128, 512)
    )
    assert even == of(model, "seq2seq")
    assert longer is not None
    shape = resolve_shape(model, 128)
    assert isinstance(shape, EncoderDecoderShape)
    assert longer.per_token == shape.flops_per_token(1000, 128, 512)


def test_a_decoders_head_works_on_targets_alone() -> None:
    model = ModelConfig(preset="llama-1m")
    found = of(model, "sft")
    assert found is not None
    width = resolve_shape(model, 128).hidden_size
    assert found.of_step(100, 100) - found.of_step(100, 10) == 90 * 6 * 1000 * width


def test_where_no_formula_is_right_nothing_is_said(tmp_path: Path) -> None:
    model = ModelConfig(preset="llama-1m")
    assert of(model, "dpo") is None
    assert of(model, lora={"rank": 4}) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert of(ModelConfig(path=str(tmp_path))) is None
