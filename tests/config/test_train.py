"""The `train` section: what goes together, and what decides the result."""

import pytest
from pydantic import ValidationError

from raylm.artifact import json_hash
from raylm.config.train import TrainConfig


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"offload": "optimizer", "zero": 0}, "set zero to 1, 2 or 3"),
        ({"offload": "all", "zero": 2}, "offload=all needs zero=3, not 2"),
        ({"precision": "fp16"}, "on CPUs set bf16, fp32 or auto"),
        ({"precision": "fp16", "zero": 0, "gpus_per_worker": 1}, "needs zero=1, 2 or 3"),
        ({"compile": True, "zero": 3}, "set zero to 2"),
        ({"optimizer": {"name": "muon"}, "offload": "optimizer"}, "set offload to none"),
        ({"optimizer": {"name": "muon"}, "lora": {}}, "use adamw"),
        ({"optimizer": {"muon_lr": 0.1}}, "set name to muon"),
        ({"optimizer": {"muon_momentum": 0.9}}, "set name to muon"),
        ({"liger": True}, "gpus_per_worker is 0"),
        ({"workers": 0, "global_batch": 16, "micro_batch": 5}, "the nearest is 15"),
    ],
)
def test_what_does_not_go_together_says_what_would(values: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(values)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"offload": "optimizer", "zero": 1},
        {"offload": "all", "zero": 3},
        {"precision": "fp16", "zero": 1, "gpus_per_worker": 1},
        {"compile": True, "zero": 2},
        {"liger": True, "gpus_per_worker": 1},
        {"optimizer": {"name": "muon", "muon_lr": 0.02}, "zero": 3},
    ],
)
def test_what_goes_together_is_taken(values: dict[str, object]) -> None:
    TrainConfig.model_validate(values)


def test_new_choices_do_not_change_what_old_configurations_hash_to() -> None:
    # Taken before there were any of them.
    assert (
        json_hash(TrainConfig().key())
        == "33272e83f1cff4562c41bf5987f22afc97b1feec7529c39134dde060cec7b4b0"
    )
    assert TrainConfig(offload="optimizer", workers=0).key() == TrainConfig().key()


@pytest.mark.parametrize(
    "values", [{"compile": True}, {"liger": False}, {"optimizer": {"name": "muon"}},
               {"precision": "auto"}, {"schedule": {"kind": "linear"}}],
)  # fmt: skip
def test_what_changes_the_result_is_in_the_key(values: dict[str, object]) -> None:
    assert TrainConfig.model_validate(values).key() != TrainConfig().key()


def test_without_workers_there_is_one_rank() -> None:
    config = TrainConfig(workers=0)
    assert (config.min_workers, config.max_workers, config.is_alone) == (1, 1, True)
    assert not TrainConfig(workers=1).is_alone
