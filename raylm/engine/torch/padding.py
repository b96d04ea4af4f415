"""Token sequences of different length as one tensor, and the mask that tells them apart."""

from __future__ import annotations

from collections.abc import Sequence as Row

import numpy as np
import torch


def left_padded(sequences: Row[Row[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [rows, widest] that end together, and their mask, 0 on the padding."""
    width = max(len(sequence) for sequence in sequences)
    ids = np.zeros((len(sequences), width), np.int64)
    mask = np.zeros((len(sequences), width), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def right_padded(sequences: Row[Row[int]], pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [rows, widest] that begin together, and their mask, 0 on the padding."""
    width = max(len(sequence) for sequence in sequences)
    ids = np.full((len(sequences), width), pad_id, np.int64)
    mask = np.zeros((len(sequences), width), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
