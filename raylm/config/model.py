"""The `model` section: which architecture is trained."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from raylm.config.section import OUTSIDE_KEY, Section

SIZES = (
    "hidden_size", "intermediate_size", "num_layers", "num_decoder_layers", "num_heads",
    "num_kv_heads", "head_size", "max_context_tokens", "tie_embeddings",
)  # fmt: skip
"""What of a preset can be set anew, where its architecture has it."""
_NEW_SIZES = ("num_decoder_layers", "head_size")


class ModelConfig(Section):
    """Which architecture is trained. A preset, with any of its sizes set anew, or a folder.
    The vocabulary is the tokenizer's. A size that the architecture does not have is refused."""

    preset: str = "llama-3m"
    """A decoder: llama-1m, -3m, -5m, -10m, -30m, -100m, -300m or -1b; an encoder-decoder: t5-1m,
    -10m, -60m or -220m; an encoder: bert-1m, -10m, -30m or -110m. Sizes that are not set come
    from it."""
    path: Annotated[str | None, OUTSIDE_KEY] = None
    """A local Hugging Face folder whose weights training starts from: a decoder, an
    encoder-decoder, or an encoder with or without a head."""
    hidden_size: int | None = Field(None, ge=8)
    """Width of the residual stream."""
    intermediate_size: int | None = Field(None, ge=8)
    """Width of the MLP."""
    num_layers: int | None = Field(None, ge=1)
    """Layers; of an encoder-decoder the encoder's."""
    num_decoder_layers: int | None = Field(None, ge=1)
    """Encoder-decoder: layers of the decoder; None takes `num_layers` where that is set."""
    num_heads: int | None = Field(None, ge=1)
    """Attention heads."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Decoder: key and value heads; divides num_heads."""
    head_size: int | None = Field(None, ge=2)
    """Encoder-decoder: width of an attention head, elsewhere hidden_size / num_heads."""
    max_context_tokens: int | None = Field(None, ge=8)
    """Decoder, encoder: longest sequence the model is meant for; None takes the larger of the
    preset's and `data.seq_len`."""
    tie_embeddings: bool | None = None
    """Decoder, encoder-decoder: share the embedding with the output head."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        if self.path is not None:
            given = [name for name in SIZES if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"path={self.path}: the folder has its own sizes; remove {', '.join(given)}"
                )
        if not self.preset.startswith("llama-"):
            return self
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

    def key(self) -> dict[str, Any]:
        """As every section's; without the sizes that only other architectures have where they
        are not set, as before there were any."""
        found = super().key()
        return {n: v for n, v in found.items() if v is not None or n not in _NEW_SIZES}
