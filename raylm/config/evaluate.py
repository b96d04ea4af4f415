"""The `evaluate` section: what is measured on held-out text."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raylm.config.section import OUTSIDE_KEY, Section


class EvaluateConfig(Section):
    """What is measured on held-out text."""

    max_samples: int | None = Field(256, ge=1)
    """Packed sequences of the held-out split that are read; None reads all."""
    batch: Annotated[int, OUTSIDE_KEY] = Field(8, ge=1)
    """Sequences in one forward pass."""
    num_cpus: Annotated[float, OUTSIDE_KEY] = Field(1.0, gt=0)
    """CPUs of the evaluating task."""
