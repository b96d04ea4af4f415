"""The `model` section: which architecture is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raylm.config.section import OUTSIDE_KEY, Section


class ModelConfig(Section):
    """Which architecture is trained. A preset, with any of its sizes set anew, or a folder."""

    preset: str = "llama-3m"
    """llama-1m, -3m, -5m, -10m, -30m, -100m, -300m or -1b: sizes that are not set come from it."""
    path: Annotated[str | None, OUTSIDE_KEY] = None
    """A local Hugging Face folder whose weights training starts from."""
    hidden_size: int | None = Field(None, ge=8)
    """Width of the residual stream."""
    intermediate_size: int | None = Field(None, ge=8)
    """Width of the MLP."""
    num_layers: int | None = Field(None, ge=1)
    """Decoder layers."""
    num_heads: int | None = Field(None, ge=1)
    """Attention heads."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Key and value heads; divides num_heads."""
    max_context_tokens: int | None = Field(None, ge=8)
    """Longest sequence the model is meant for; None takes the larger of the preset's and
    `data.seq_len`."""
    tie_embeddings: bool | None = None
    """Share the embedding with the output head."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        if self.num_heads and self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}"
            )
        if self.hidden_size and self.num_heads and self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} is not an even multiple of "
                f"num_heads={self.num_heads} (rotary positions need an even head size)"
            )
        return self
