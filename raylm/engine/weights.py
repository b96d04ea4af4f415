"""Read-only, memory-mapped tensors of a Hugging Face folder; safetensors and nothing else.

The format is read here and not through the safetensors package because numpy has no
bfloat16: a bfloat16 tensor comes out as its raw 16-bit words. Format:
https://github.com/huggingface/safetensors#format
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
from raylm.model.folder import weight_files

# The type a tensor is stored in -> the numpy type its words are read as, and their size.
_WORDS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I8": np.dtype("<i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it lies on disk: `dtype` in safetensors' words, `data` memory-mapped."""

    dtype: str
    data: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes, outermost first."""
        return self.data.shape

    def as_float32(self) -> NDArray[np.float32]:
        """The values as f32, exactly."""
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32)


class Checkpoint:
    """All tensors of a model folder by name."""

    def __init__(self, tensors: dict[str, StoredTensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise ModelError(f"the weights lack {name!r}", code="missing-tensor") from None

    def names(self) -> list[str]:
        """Every tensor's name."""
        return sorted(self._tensors)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Map every safetensors file of a model folder.

    Raises:
        ModelError: there are none (`pickled-weights` if there are pickles instead), or one
            is damaged.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        tensors.update(map_file(path))
    return Checkpoint(tensors)


def map_file(path: Path) -> dict[str, StoredTensor]:
    """Map one safetensors file.

    Raises:
        ModelError: it is damaged, or holds a type that is not read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, "its header does not fit")
        try:
            header = json.loads(file.read(header_bytes))
        except ValueError:
            raise _damaged(path, "its header is not JSON") from None
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + header_bytes)
    header.pop("__metadata__", None)
    return {name: _view(path, name, entry, data) for name, entry in header.items()}


def _view(path: Path, name: str, entry: dict[str, Any], data: NDArray[np.uint8]) -> StoredTensor:
    words = _WORDS.get(entry["dtype"])
    if words is None:
        raise ModelError(
            f"{path.name}: {name} is stored as {entry['dtype']}, which raylm does not read",
            code="unsupported-dtype",
        )
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if not 0 <= begin <= end <= data.size or end - begin != math.prod(shape) * words.itemsize:
        raise _damaged(path, f"{name} lies outside the file")
    return StoredTensor(entry["dtype"], data[begin:end].view(words).reshape(shape))


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"{path} is damaged: {why}", code="damaged-weights")
