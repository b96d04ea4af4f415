from typing import Any

import pytest

from raylm.config.data import Format
from raylm.config.train import TrainConfig
from raylm.errors import ConfigError
from raylm.model.folder import Architecture
from raylm.train.objectives.objective import OBJECTIVES, choose, objective_for


@pytest.mark.parametrize(
    ("format", "architecture", "name"),
    [
        ("text", "decoder", "causal"), ("text", "encoder", "mlm"), ("chat", "decoder", "sft"),
        ("pairs", "encoder-decoder", "seq2seq"), ("labels", "encoder", "classify"),
        ("preferences", "decoder", "dpo"),
    ],
)  # fmt: skip
def test_data_and_model_say_what_is_learned(
    format: Format, architecture: Architecture, name: str
) -> None:
    assert choose(TrainConfig(), format, architecture) == name
    assert objective_for(name).name == name


def test_every_name_of_the_config_is_an_objective() -> None:
    for name in ("causal", "sft", "seq2seq", "mlm", "classify", "dpo"):
        assert name in OBJECTIVES.names()


def test_a_whole_chat_can_be_learned_as_text() -> None:
    assert choose(TrainConfig(objective="causal"), "chat", "decoder") == "causal"


@pytest.mark.parametrize(
    ("config", "format", "architecture", "said"),
    [
        ({}, "pairs", "decoder", "seq2seq trains an encoder-decoder, the model is of type decoder"),
        ({}, "text", "encoder-decoder", "objective=causal trains a decoder"),
        ({"objective": "dpo"}, "text", "decoder", "dpo does not learn from data.format=text"),
        ({"mask_documents": False}, "labels", "encoder", "classify needs records kept apart"),
        ({"dpo_beta": 0.2}, "text", "decoder", "dpo_beta=0.2: train.objective=causal has no such"),
    ],
)
def test_what_does_not_go_together_is_refused(
    config: dict[str, Any], format: Format, architecture: Architecture, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        choose(TrainConfig(**config), format, architecture)
    assert caught.value.hint
