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


def test_fp16_is_scaled_dynamically_and_only_fp16() -> None:
    values = {"precision": "fp16", "gpus_per_worker": 1}
    fp16 = deepspeed_config(TrainConfig.model_validate(values), 2)
    assert fp16["fp16"] | {"enabled": True, "loss_scale": 0} == fp16["fp16"]
    assert fp16["bf16"]["enabled"] is False
    assert deepspeed_config(TrainConfig(), 2)["fp16"]["enabled"] is False


@pytest.mark.parametrize(
    ("offload", "gpus", "moved"),
    [
        ("none", 1, {}),
        ("optimizer", 1, {"offload_optimizer": True}),
        ("all", 1, {"offload_optimizer": True, "offload_param": True}),
        ("all", 0, {"offload_optimizer": False, "offload_param": False}),
    ],
)
def test_what_is_offloaded_lies_pinned_where_there_is_a_gpu(
    offload: str, gpus: int, moved: dict[str, bool]
) -> None:
    values = {"zero": 3, "offload": offload, "gpus_per_worker": gpus}
    made = deepspeed_config(TrainConfig.model_validate(values), 2)
    found = {k: v for k, v in made["zero_optimization"].items() if k.startswith("offload")}
    assert found == {k: {"device": "cpu", "pin_memory": pinned} for k, pinned in moved.items()}
    assert made["zero_force_ds_cpu_optimizer"] is False
