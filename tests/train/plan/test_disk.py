import pytest

from raylm.config.model import ModelConfig
from raylm.config.train import CheckpointConfig, OptimizerConfig, TrainConfig
from raylm.model.presets import PRESETS
from raylm.train.plan.decoder import Decoder
from raylm.train.plan.disk import checkpoint_bytes, disk
from raylm.train.plan.subject import subject_of

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


@pytest.mark.parametrize(
    ("values", "has_bucket", "expected"),
    [
        ({"keep": 2}, False, 3),
        ({"keep": 2, "keep_best": 2}, False, 5),
        # One that is no longer kept may still be held by its upload.
        ({"keep": 2}, True, 4),
        ({"keep": 1, "keep_best": 3}, True, 6),
        ({"keep": 2, "upload": False}, True, 3),
    ],
)
def test_the_best_and_one_that_is_uploaded_lie_there_too(
    values: dict[str, object], has_bucket: bool, expected: int
) -> None:
    config = TrainConfig(checkpoint=CheckpointConfig.model_validate(values))
    assert disk(DECODER, config, 0, has_bucket=has_bucket).num_checkpoints == expected


@pytest.mark.parametrize(
    ("preset", "zero", "precision", "measured"),
    [
        # benchmarks/plan_memory.py's worker, alone.
        ("t5-10m", 0, "fp32", 115_025_943),
        ("t5-10m", 2, "fp32", 153_240_228),
        ("t5-10m", 3, "fp32", 114_956_088),
        ("t5-10m", 0, "bf16", 134_203_301),
        ("t5-10m", 2, "bf16", 134_092_010),
        ("bert-10m", 0, "fp32", 65_654_735),
        ("bert-10m", 2, "fp32", 87_444_452),
        ("bert-10m", 3, "fp32", 65_603_252),
        ("bert-10m", 2, "bf16", 76_518_954),
    ],
)
def test_checkpoints_of_the_other_architectures_are_as_large_as_deepspeed_writes_them(
    preset: str, zero: int, precision: str, measured: int
) -> None:
    subject = subject_of(ModelConfig(preset=preset), seq_len=512, vocab_size=8192)
    assert subject is not None
    config = TrainConfig.model_validate({"zero": zero, "precision": precision})
    assert checkpoint_bytes(subject, config) == pytest.approx(measured, rel=0.01)
    muon = config.model_copy(update={"optimizer": OptimizerConfig(name="muon")})
    saved = checkpoint_bytes(subject, config) - checkpoint_bytes(subject, muon)
    assert saved == 4 * subject.num_hidden


def test_without_a_dataset_the_rest_is_counted() -> None:
    found = disk(DECODER, TrainConfig(), None)
    assert found.dataset_bytes is None
    assert found.total_bytes == 3 * found.checkpoint_bytes + found.model_bytes
