import pytest

from raylm.config.train import TrainConfig
from raylm.train.zero import deepspeed_config


@pytest.mark.parametrize(("workers", "accumulation"), [(1, 8), (2, 4), (4, 2)])
def test_accumulation_keeps_the_global_batch(workers: int, accumulation: int) -> None:
    config = TrainConfig(global_batch=32, micro_batch=4, workers=workers, zero=3, precision="bf16")
    made = deepspeed_config(config, workers)
    assert made["gradient_accumulation_steps"] == accumulation
    assert made["train_batch_size"] == 32
    assert made["zero_optimization"]["stage"] == 3
    assert made["bf16"]["enabled"] is True
