import pytest

from raylm.config.train import CheckpointConfig, TrainConfig
from raylm.model.presets import PRESETS
from raylm.train.plan.disk import checkpoint_bytes, disk
from raylm.train.plan.memory import Decoder

DECODER = Decoder(PRESETS["llama-30m"], 8192, 512)


@pytest.mark.parametrize(
    ("zero", "precision", "measured"),
    [
        # benchmarks/plan_memory.py, two workers, all files together.
        (0, "fp32", 404_484_671),
        (1, "fp32", 539_195_235),
        (2, "fp32", 539_195_235),
        (3, "fp32", 404_469_784),
    ],
)
def test_a_checkpoint_is_as_large_as_deepspeed_writes_it(
    zero: int, precision: str, measured: int
) -> None:
    config = TrainConfig.model_validate({"zero": zero, "precision": precision})
    assert checkpoint_bytes(DECODER, config) == pytest.approx(measured, rel=0.01)


def test_one_more_checkpoint_than_is_kept_lies_on_disk_while_it_is_written() -> None:
    config = TrainConfig(checkpoint=CheckpointConfig(keep=3))
    found = disk(DECODER, config, 1000)
    assert found.num_checkpoints == 4
    assert found.model_bytes == 4 * DECODER.num_parameters
    assert found.total_bytes == 4 * found.checkpoint_bytes + found.model_bytes + 1000


def test_without_a_dataset_the_rest_is_counted() -> None:
    found = disk(DECODER, TrainConfig(), None)
    assert found.dataset_bytes is None
    assert found.total_bytes == 3 * found.checkpoint_bytes + found.model_bytes
