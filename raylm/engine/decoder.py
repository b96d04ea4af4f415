"""What a Llama-type decoder is made of, read from config.json; no model library needed.

Covers the family whose layer is: RMS norm, rotary grouped-query attention, RMS norm, gated
MLP. Anything else raises `unsupported-architecture`, and the torch engine takes the model.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylm.errors import ModelError

ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
_ACTIVATIONS = frozenset({"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"})


@dataclass(frozen=True, slots=True)
class Decoder:
    """Sizes and constants of one decoder."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    activation: str
    tied: bool
    max_positions: int
    sliding_window: int
    """Tokens a token sees, itself included; 0 is all of them."""
    rope: dict[str, Any]

    def inverse_frequencies(self) -> NDArray[np.float32]:
        """Angular speed of each rotated pair, [head_dim / 2], radians per position.

        RoPE (arXiv:2104.09864), with the `linear` (arXiv:2306.15595) and `llama3` (Llama 3.1)
        stretchings as transformers computes them.
        """
        pairs = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        plain = 1.0 / self.rope["rope_theta"] ** pairs
        kind = self.rope["rope_type"]
        if kind == "default":
            return plain.astype(np.float32)
        slowed = plain / self.rope["factor"]
        if kind == "linear":
            return slowed.astype(np.float32)
        # llama3: long waves are slowed, short ones kept, those between blended.
        old_length = self.rope["original_max_position_embeddings"]
        low, high = self.rope["low_freq_factor"], self.rope["high_freq_factor"]
        turns = old_length * plain / (2 * math.pi)
        blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return ((1 - blend) * slowed + blend * plain).astype(np.float32)


def parse_decoder(config: dict[str, Any]) -> Decoder:
    """Turn config.json into a `Decoder`.

    Raises:
        ModelError: `unsupported-architecture`, with the feature that is not covered.
    """
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise unsupported(f"architecture {architecture}")
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise unsupported(f"activation {activation!r}")
    heads = config["num_attention_heads"]
    return Decoder(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        activation=activation,
        tied=config.get("tie_word_embeddings", False),
        max_positions=config["max_position_embeddings"],
        sliding_window=_sliding_window(config, architecture),
        rope=_rope(config),
    )


def eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end an answer: generation_config.json's, else config.json's; may be none."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        if found is not None:
            return tuple(found) if isinstance(found, list) else (found,)
    return ()


def unsupported(what: str) -> ModelError:
    """The error that sends a model to the torch engine."""
    return ModelError(
        f"the OpenVINO converter does not cover {what}",
        code="unsupported-architecture",
        hint="set engine.kind=torch, which runs other models of transformers",
    )


def _sliding_window(config: dict[str, Any], architecture: str) -> int:
    window = config.get("sliding_window") or 0
    if architecture == "MistralForCausalLM":
        return int(window)
    if config.get("use_sliding_window"):
        raise unsupported("sliding windows in some layers only")
    return 0


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    found.setdefault("rope_type", found.pop("type", "default"))
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if found["rope_type"] not in ("default", "linear", "llama3"):
        raise unsupported(f"rope type {found['rope_type']!r}")
    if found.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise unsupported("partial rotary embeddings")
    return found
