import pytest

from raylm.config.train import TrainConfig
from raylm.model.presets import PRESETS
from raylm.train.plan.decoder import Decoder
from raylm.train.plan.pace import REACHED_CPU, REACHED_GPU, pace

DECODER = Decoder(PRESETS["llama-30m"], 8192, 512)
FLOPS = DECODER.flops_per_token


def test_flops_are_six_for_a_parameter_and_the_scores() -> None:
    assert 6 * DECODER.num_parameters + 12 * 10 * 512 * 512 == FLOPS


@pytest.mark.parametrize(
    ("changes", "peak", "expected"),
    [
        ({"workers": 2}, 100e9, 2 * 100e9 / FLOPS),
        ({"workers": 1}, 100e9, 100e9 / FLOPS),
        # A third of the work again.
        ({"workers": 1, "activation_checkpointing": True}, 100e9, 100e9 / FLOPS * 3 / 4),
    ],
)
def test_the_roofline(changes: dict[str, object], peak: float, expected: float) -> None:
    config = TrainConfig.model_validate({"steps": 10, **changes})
    found = pace(DECODER, config, worker_peak=peak, num_samples=None)
    assert found.roofline_tokens_per_s == pytest.approx(expected)
    assert found.tokens_per_s == pytest.approx(REACHED_CPU * expected)
    assert found.train_s == pytest.approx(10 * 16 * 512 / (REACHED_CPU * expected))


def test_gpus_are_reckoned_with_another_share() -> None:
    config = TrainConfig(steps=10, workers=2, gpus_per_worker=1.0)
    found = pace(DECODER, config, worker_peak=989e12, num_samples=None)
    assert found.tokens_per_s == pytest.approx(REACHED_GPU * 2 * 989e12 / FLOPS)


def test_steps_tokens_and_passes() -> None:
    config = TrainConfig(steps=10, global_batch=16)
    found = pace(DECODER, config, worker_peak=None, num_samples=40)
    assert (found.steps, found.tokens, found.epochs) == (10, 10 * 16 * 512, 4.0)
    assert (found.tokens_per_s, found.roofline_tokens_per_s, found.train_s) == (None, None, None)


def test_a_time_limit_gives_the_steps_where_the_speed_is_known() -> None:
    config = TrainConfig(time_s=3600)
    rate = REACHED_CPU * 2 * 100e9 / FLOPS
    found = pace(DECODER, config, worker_peak=100e9, num_samples=None)
    assert found.train_s == 3600
    assert found.steps == int(3600 * rate / (16 * 512))
    unknown = pace(DECODER, config, worker_peak=None, num_samples=40)
    assert (unknown.steps, unknown.tokens, unknown.epochs) == (None, None, None)
    assert unknown.train_s == 3600
