"""What autograd really keeps, counted with saved-tensor hooks; the formulas are held against it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from raylm.data.shards import NO_TARGET, Batch


def saved_bytes(model: Any, forward: Callable[[], torch.Tensor]) -> int:
    """Bytes of all storages, but for weights, that a forward pass saves for the backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def rows(num_rows: int, seq_len: int, vocab: int, *, every: int = 1) -> Batch:
    """Rows of two documents each; every so many tokens have a target."""
    ids = np.random.default_rng(0).integers(0, vocab, (num_rows, seq_len))
    segments = np.ones((num_rows, seq_len), np.int32)
    segments[:, seq_len // 2 :] = 2
    places = np.tile(np.arange(seq_len), (num_rows, 1))
    targets = np.where(places % every == 0, ids, NO_TARGET)
    return Batch(ids, segments, places % (seq_len // 2), targets)
