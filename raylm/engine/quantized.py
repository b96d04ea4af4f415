"""Int8 weights as compressed-tensors stores them, read without that library.

Both of its 8-bit layouts hold the same symmetric integers with one scale per output row:
`int-quantized` as int8, `pack-quantized` as int32 words of four biased bytes each, lowest
byte first (`compressed_tensors.compressors.pack_quantized.helpers.pack_to_int32`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylm.engine.decoder import unsupported
from raylm.engine.weights import Checkpoint
from raylm.errors import ModelError

_FORMATS = ("pack-quantized", "int-quantized")


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """`integers` [rows, columns] int8 times `scale` [rows, 1] f32 is the weight."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]


def check_quantization(config: dict[str, Any]) -> bool:
    """Whether the model is quantized.

    Raises:
        ModelError: it is, in a way the converter does not cover.
    """
    found = config.get("quantization_config") or config.get("compression_config")
    if not found:
        return False
    if found.get("quant_method") != "compressed-tensors":
        raise unsupported(f"quantization by {found.get('quant_method')!r}")
    for group in (found.get("config_groups") or {}).values():
        _check_group(group, group.get("format") or found.get("format"))
    if found.get("kv_cache_scheme"):
        raise unsupported("a stored scheme for the key-value cache")
    return True


def int8_weight(weights: Checkpoint, prefix: str) -> Int8Weight | None:
    """The quantized weight of the linear layer `prefix`, or None if it is not quantized."""
    if f"{prefix}.weight_scale" not in weights:
        return None
    scale = weights[f"{prefix}.weight_scale"].as_float32()
    if f"{prefix}.weight_packed" in weights:
        rows, columns = (int(size) for size in weights[f"{prefix}.weight_shape"].data)
        integers = unpack_int8(weights[f"{prefix}.weight_packed"].data, columns)
    else:
        integers = weights[f"{prefix}.weight"].data
        rows, columns = integers.shape
    if integers.dtype != np.int8 or integers.shape != (rows, columns) or scale.size != rows:
        raise ModelError(
            f"{prefix}: {integers.dtype} weights of shape {integers.shape} do not go with "
            f"{scale.size} scales",
            code="damaged-weights",
        )
    return Int8Weight(np.ascontiguousarray(integers), scale.reshape(rows, 1))


def stored_precision(weights: Checkpoint) -> str:
    """What the linear layers are stored in, for people to read: int8, f32, bf16, f16."""
    names = weights.names()
    if any(name.endswith(".weight_scale") for name in names):
        return "int8"
    largest = max(names, key=lambda name: weights[name].data.size)
    return weights[largest].dtype.lower()


def unpack_int8(words: NDArray[np.int32], num_columns: int) -> NDArray[np.int8]:
    """[rows, words] of four bytes, each biased by 128 -> [rows, num_columns]."""
    biased = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)[:, :num_columns]
    return (biased ^ 0x80).view(np.int8)


def _check_group(group: dict[str, Any], layout: str | None) -> None:
    scheme = group.get("weights") or {}
    if layout not in _FORMATS:
        raise unsupported(f"the format {layout!r}")
    if (scheme.get("num_bits"), scheme.get("type", "int")) != (8, "int"):
        raise unsupported(f"{scheme.get('num_bits')}-bit {scheme.get('type')} weights")
    if not scheme.get("symmetric", True) or scheme.get("strategy") not in ("channel", "tensor"):
        raise unsupported("weights that are not symmetric with one scale per channel")
    if group.get("input_activations") or group.get("output_activations"):
        raise unsupported("quantized activations")
