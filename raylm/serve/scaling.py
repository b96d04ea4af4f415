"""How many engine replicas a model has: fixed, or by its load."""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from raylm.config.serve import ServeConfig


def desired_replicas(num_requests: float, target_per_replica: float) -> int:
    """Replicas for so many answers in the making and waiting. Pure.

    Bounds and delays are applied by Serve afterwards.
    """
    return math.ceil(num_requests / target_per_replica)


def policy(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """What Serve's controller asks, for each deployment by itself."""
    target = context.config.get_target_ongoing_requests()
    return desired_replicas(context.total_num_requests, target), {}


def scaling(config: ServeConfig) -> dict[str, Any]:
    """The options of an engine deployment that say how many replicas it has."""
    bounds = config.replicas
    if isinstance(bounds, int):
        return {"num_replicas": bounds}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=bounds.min,
            max_replicas=bounds.max,
            target_ongoing_requests=bounds.target_ongoing_requests,
            look_back_period_s=bounds.look_back_s,
            upscale_delay_s=bounds.upscale_delay_s,
            downscale_delay_s=bounds.downscale_delay_s,
            downscale_to_zero_delay_s=bounds.to_zero_delay_s,
            policy=AutoscalingPolicy(policy_function=policy),
        )
    }
