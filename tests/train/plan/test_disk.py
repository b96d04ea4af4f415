from pathlib import Path

import pytest

from raylm.config.model import ModelConfig
from raylm.config.train import CheckpointConfig, OptimizerConfig, TrainConfig
from raylm.errors import HostError
from raylm.model.presets import PRESETS
from raylm.train.plan.decoder import Decoder
from raylm.train.plan.disk import check_disk, checkpoint_bytes, disk, nearest_on_disk
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


def test_no_more_checkpoints_are_counted_than_the_steps_make() -> None:
    config = TrainConfig(steps=100, checkpoint=CheckpointConfig(every_steps=60, keep=8))
    assert disk(DECODER, config, None).num_checkpoints == 2
    config = TrainConfig(steps=100, checkpoint=CheckpointConfig(every_steps=5, keep=8))
    assert disk(DECODER, config, None).num_checkpoints == 9


def test_a_checkpoint_that_is_looked_at_aside_lies_there_too() -> None:
    config = TrainConfig.model_validate({"validate_aside": {"num_cpus": 0}})
    assert disk(DECODER, config, None).num_checkpoints == 4


def written(**checkpoint: object) -> int:
    config = TrainConfig(checkpoint=CheckpointConfig.model_validate(checkpoint))
    return disk(DECODER, config, None, has_bucket=True).written_bytes


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (written(keep=3, keep_best=2), {}),
        (written(keep=2, keep_best=2), {"keep": "2"}),
        (written(keep=1, keep_best=2), {"keep": "1"}),
        (written(keep=1, keep_best=0), {"keep": "1", "keep_best": "0"}),
        (
            written(keep=1, keep_best=0, upload=False),
            {"keep": "1", "keep_best": "0", "upload": "false"},
        ),
        (written(keep=1, keep_best=0, upload=False) - 1, None),
    ],
)
def test_fewer_kept_checkpoints_are_the_nearest(free: int, expected: dict[str, str] | None) -> None:
    config = TrainConfig(checkpoint=CheckpointConfig(keep=3, keep_best=2))
    found = nearest_on_disk(DECODER, config, free, has_bucket=True)
    keys = {f"train.checkpoint.{key}": value for key, value in (expected or {}).items()}
    assert found == (None if expected is None else keys)


def test_the_best_is_kept_where_it_is_to_be_the_result() -> None:
    values = {"result": "best", "checkpoint": {"keep": 1, "keep_best": 2}}
    config = TrainConfig.model_validate(values)
    found = nearest_on_disk(DECODER, config, written(keep=1, keep_best=1, upload=False))
    assert found == {"train.checkpoint.keep_best": "1"}
    assert nearest_on_disk(DECODER, config, 10**8) is None


def test_what_the_disk_does_not_hold_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(checkpoint=CheckpointConfig(keep=3))
    wanted = disk(DECODER, config, None).written_bytes
    check_disk(DECODER, config, tmp_path, free_bytes=wanted, there_bytes=0)
    # What a killed attempt has left is written over, and not beside.
    check_disk(DECODER, config, tmp_path, free_bytes=10**8, there_bytes=wanted - 10**8)
    with pytest.raises(HostError, match="4 checkpoints of") as caught:
        check_disk(DECODER, config, tmp_path, free_bytes=wanted - 1, there_bytes=0)
    assert (caught.value.code, caught.value.exit_code) == ("plan-disk-too-small", 3)
    assert str(caught.value.hint).startswith("--set train.checkpoint.keep=2 fits")
    with pytest.raises(HostError) as caught:
        check_disk(DECODER, config, tmp_path, free_bytes=10**8, there_bytes=0)
    assert "larger disk" in str(caught.value.hint)
    unchecked = config.model_copy(update={"check_disk": False})
    check_disk(DECODER, unchecked, tmp_path, free_bytes=0, there_bytes=0)
