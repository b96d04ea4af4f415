"""How many replicas a load needs, and what Serve is told."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from raylm.config.serve import ReplicaRange, ServeConfig
from raylm.serve.scaling import desired_replicas, scaling


@pytest.mark.parametrize(
    ("num_requests", "target", "replicas"),
    [(0, 16, 0), (0.5, 16, 1), (16, 16, 1), (16.1, 16, 2), (100, 8, 13)],
)
def test_replicas_follow_the_load(num_requests: float, target: float, replicas: int) -> None:
    assert desired_replicas(num_requests, target) == replicas


def test_a_fixed_number_is_fixed() -> None:
    config = ServeConfig(replicas=3)
    assert scaling(config) == {"num_replicas": 3}
    assert (config.min_replicas, config.max_replicas) == (3, 3)


def test_a_range_is_what_serve_is_told() -> None:
    bounds = ReplicaRange(
        min=0, max=4, target_ongoing_requests=8, look_back_s=20, upscale_delay_s=1,
        downscale_delay_s=30, to_zero_delay_s=300,
    )  # fmt: skip
    told = scaling(ServeConfig(replicas=bounds))["autoscaling_config"]
    assert (told.min_replicas, told.max_replicas, told.target_ongoing_requests) == (0, 4, 8)
    assert (told.upscale_delay_s, told.downscale_delay_s, told.look_back_period_s) == (1, 30, 20)
    assert told.downscale_to_zero_delay_s == 300


@pytest.mark.parametrize("replicas", [0, {"min": 3, "max": 2}, {"min": -1, "max": 2}, {"min": 1}])
def test_what_makes_no_sense_is_refused(replicas: object) -> None:
    with pytest.raises(ValidationError):
        ServeConfig.model_validate({"replicas": replicas})
