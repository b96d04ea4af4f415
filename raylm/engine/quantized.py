"""Integer weights as compressed-tensors stores them, read without that library.

Both of its layouts hold symmetric integers, with one scale per output row or per group of columns
in it: `int-quantized` as int8, `pack-quantized` as int32 words of four biased bytes or eight biased
nibbles each, lowest first (`compressed_tensors.compressors.pack_quantized.helpers.pack_to_int32`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raylm.engine.decoder import unsupported
from raylm.engine.weights import Checkpoint
from raylm.errors import ModelError

_FORMATS = ("pack-quantized", "int-quantized")


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """Integers of `shape` [rows, columns] times their scales are the weight.

    `data` is int8 [rows, columns], or with 4 bits uint8 [rows, columns / 2]: two integers a byte,
    lower nibble first, as two's complements.
    """

    num_bits: int
    shape: tuple[int, int]
    data: NDArray[np.integer[Any]]
    scale: NDArray[np.float32]
    """[rows, groups]; a group is columns / groups columns that lie together."""


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


def integer_weight(weights: Checkpoint, prefix: str) -> IntegerWeight | None:
    """The quantized weight of the linear layer `prefix`, or None if it is not quantized."""
    if not is_quantized(weights, prefix):
        return None
    scale = weights[f"{prefix}.weight_scale"].as_float32()
    num_bits, rows, columns = _layout(weights, prefix)
    data: NDArray[np.integer[Any]]
    if f"{prefix}.weight_packed" in weights:
        words = weights[f"{prefix}.weight_packed"].data
        data = unpack_int8(words, columns) if num_bits == 8 else repack_int4(words, columns)
    else:
        data = weights[f"{prefix}.weight"].data
    width = columns if num_bits == 8 else columns // 2
    groups = scale.size // rows
    if (
        data.dtype.itemsize != 1
        or data.shape != (rows, width)
        or scale.size != rows * groups
        or groups < 1
        or columns % groups
        or columns * num_bits % 8
    ):
        raise ModelError(
            f"{prefix}: {data.dtype} weights of shape {data.shape} do not go with "
            f"{scale.size} scales for {rows} rows of {columns}",
            code="damaged-weights",
        )
    scale = scale.reshape(rows, groups)
    return IntegerWeight(num_bits, (rows, columns), np.ascontiguousarray(data), scale)


def is_quantized(weights: Checkpoint, prefix: str) -> bool:
    """Whether the linear layer `prefix` is stored as integers."""
    return f"{prefix}.weight_scale" in weights


def stored_precision(weights: Checkpoint) -> str:
    """What the linear layers are stored in, for people to read: int4, int8, f32, bf16, f16.

    Of several the one that most of the integers have.
    """
    names = weights.names()
    sizes: Counter[str] = Counter()
    for name in names:
        if name.endswith(".weight_scale"):
            num_bits, rows, columns = _layout(weights, name.removesuffix(".weight_scale"))
            sizes[f"int{num_bits}"] += rows * columns
    if sizes:
        return sizes.most_common(1)[0][0]
    largest = max(names, key=lambda name: weights[name].data.size)
    return weights[largest].dtype.lower()


def unpack_int8(words: NDArray[np.int32], num_columns: int) -> NDArray[np.int8]:
    """[rows, words] of four bytes, each biased by 128 -> [rows, num_columns]."""
    biased = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)[:, :num_columns]
    return (biased ^ 0x80).view(np.int8)


def repack_int4(words: NDArray[np.int32], num_columns: int) -> NDArray[np.uint8]:
    """[rows, words] of eight nibbles, each biased by 8 -> [rows, num_columns / 2], not biased."""
    biased = np.ascontiguousarray(words, dtype="<i4").view(np.uint8)[:, : num_columns // 2]
    return np.bitwise_xor(biased, 0x88, dtype=np.uint8)


def _layout(weights: Checkpoint, prefix: str) -> tuple[int, int, int]:
    """Bits, rows and columns of a layer's integers."""
    if f"{prefix}.weight_packed" not in weights:
        rows, columns = weights[f"{prefix}.weight"].shape
        return 8, rows, columns
    rows, columns = (int(size) for size in weights[f"{prefix}.weight_shape"].data)
    num_words = weights[f"{prefix}.weight_packed"].shape[1]
    return 8 if num_words == -(-columns // 4) else 4, rows, columns


def _check_group(group: dict[str, Any], layout: str | None) -> None:
    scheme = group.get("weights") or {}
    if layout not in _FORMATS:
        raise unsupported(f"the format {layout!r}")
    bits, kind = scheme.get("num_bits"), scheme.get("type", "int")
    if kind != "int" or bits not in (4, 8) or (bits == 4 and layout != "pack-quantized"):
        raise unsupported(f"{bits}-bit {kind} weights in the format {layout!r}")
    if not scheme.get("symmetric", True):
        raise unsupported("weights that are not symmetric")
    if scheme.get("strategy") not in ("tensor", "channel", "group"):
        raise unsupported(f"one scale per {scheme.get('strategy')}")
    if scheme.get("actorder") in ("group", "dynamic"):
        raise unsupported("groups of columns that do not lie together (actorder)")
    if group.get("input_activations") or group.get("output_activations"):
        raise unsupported("quantized activations")
