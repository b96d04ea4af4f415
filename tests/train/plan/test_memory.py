import pytest

from raylm.config.train import TrainConfig
from raylm.model.presets import PRESETS
from raylm.train.plan.memory import MIB, Decoder, Memory, peak_memory

LARGE = Decoder(PRESETS["llama-1b"], 32_000, 2048)
SMALL = Decoder(PRESETS["llama-30m"], 8192, 512)
LONG = Decoder(PRESETS["llama-30m"], 8192, 2048)


def of(decoder: Decoder, **changes: object) -> Memory:
    values = {"global_batch": 64, "micro_batch": 1, "workers": 4, **changes}
    return peak_memory(decoder, TrainConfig.model_validate(values))


def test_the_parts_add_up_to_the_total() -> None:
    memory = of(SMALL)
    assert sum(memory.parts().values()) == memory.total_bytes
    assert set(memory.parts()) == {
        "parameters", "gradients", "optimizer", "communication", "activations", "loss",
        "allocator", "process",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("zero", "precision", "parameters", "optimizer"),
    [
        # Bytes of a parameter: weights; master weight and two moments, over four workers.
        (0, "fp32", 4, 8),
        (0, "bf16", 2, 12),
        (1, "fp32", 4, 12 / 4),
        (2, "bf16", 2, 12 / 4),
        (3, "bf16", 2 / 4 + 2 + 2, 12 / 4),
    ],
)
def test_what_zero_partitions(
    zero: int, precision: str, parameters: float, optimizer: float
) -> None:
    # Sequences so long that the backward pass is the fullest moment.
    memory = of(LONG, zero=zero, precision=precision, micro_batch=16)
    count = LONG.num_parameters
    assert memory.moment == "as the backward pass begins"
    assert memory.parameters == pytest.approx(parameters * count, rel=1e-6)
    assert memory.optimizer == pytest.approx(optimizer * count, rel=1e-6)


def test_zero_3_keeps_gathered_parameters_up_to_deepspeeds_limit() -> None:
    count = LARGE.num_parameters
    assert count > 10**9
    memory = of(LARGE, zero=3, precision="bf16")
    assert memory.parameters == pytest.approx(2 * (count / 4 + 10**9 + 5 * 10**7), rel=1e-6)


def test_gradients_of_earlier_micro_batches_count_only_where_there_are_any() -> None:
    one = of(LONG, zero=0, micro_batch=16, global_batch=64)
    several = of(LONG, zero=0, micro_batch=16, global_batch=128)
    assert several.gradients - one.gradients == 4 * LONG.num_parameters


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_and_a_lower_micro_batch_take_less(
    zero: int, precision: str
) -> None:
    full = of(SMALL, zero=zero, precision=precision, micro_batch=16)
    lower = of(SMALL, zero=zero, precision=precision, micro_batch=4)
    checkpointed = of(
        SMALL, zero=zero, precision=precision, micro_batch=16, activation_checkpointing=True
    )
    assert lower.total_bytes < full.total_bytes
    assert checkpointed.activations < full.activations / 3
    assert checkpointed.total_bytes < full.total_bytes


def test_more_workers_take_less_each_with_zero() -> None:
    totals = [of(LARGE, zero=2, workers=n).total_bytes for n in (2, 4, 8, 16)]
    assert totals == sorted(totals, reverse=True)


def test_a_gpu_holds_whole_buckets_and_gives_back_what_is_freed() -> None:
    tiny = Decoder(PRESETS["llama-1m"], 512, 64)
    gpu = of(tiny, zero=2, precision="bf16", gpus_per_worker=1.0)
    cpu = of(tiny, zero=2, precision="bf16")
    assert gpu.moment == "as gradients are reduced"
    assert gpu.communication > 2 * 50_000_000
    assert gpu.activations == 0
    assert cpu.communication < 4 * MIB + 4 * tiny.num_parameters
