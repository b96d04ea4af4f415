"""The `compress` section: what is made smaller, and what that may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raylm.config.section import OUTSIDE_KEY, Section


class GateConfig(Section):
    """Limits that a compressed model keeps beside its original, or the run ends with code 4."""

    max_kl: float = Field(0.05, ge=0)
    """Mean KL divergence to the original, nats per token."""
    min_top1_agreement: float = Field(0.95, ge=0, le=1)
    """Share of positions where both find the same token likeliest."""
    max_perplexity_ratio: float = Field(1.02, gt=0)
    """Perplexity over the original's."""


class CompressConfig(Section):
    """What is made smaller, and what that may cost."""

    method: Literal["int8"] = "int8"
    """int8: weights of linear layers, symmetric, one scale per output channel, rounded to
    nearest."""
    gate: GateConfig = GateConfig()
    max_samples: int | None = Field(64, ge=1)
    """Packed held-out sequences on which both models are compared; None reads all."""
    batch: Annotated[int, OUTSIDE_KEY] = Field(8, ge=1)
    """Sequences in one forward pass."""
    num_cpus: Annotated[float, OUTSIDE_KEY] = Field(1.0, gt=0)
    """CPUs of the comparing task."""
    measure_speed: bool = True
    """Time both models in the engine that would serve them."""
