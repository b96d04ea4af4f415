"""Which position may look at which, for packed rows; None where all may, which is faster."""

from __future__ import annotations

import numpy as np
import torch


def document_mask(segment_ids: np.ndarray) -> torch.Tensor | None:
    """Which position may look at which: [n, 1, L, L] bool, causal, within one document.

    None where every row is a single document: plain causal attention is then the same, and
    faster.
    """
    both_ways = segment_mask(segment_ids)
    return None if both_ways is None else both_ways.tril()


def segment_mask(segment_ids: np.ndarray) -> torch.Tensor | None:
    """The same, but both ways: [n, 1, L, L] bool."""
    if (segment_ids == segment_ids[:, :1]).all():
        return None
    segments = torch.from_numpy(segment_ids)
    return segments[:, None, :, None] == segments[:, None, None, :]


def cross_mask(segment_ids: np.ndarray, source_ids: np.ndarray) -> torch.Tensor | None:
    """Which source position a decoder's position may look at: [n, 1, L, S] bool.

    Padding of the decoder sees everything: a softmax over nothing would be no number, and
    nothing reads what it says.
    """
    if (source_ids == segment_ids[:, :1]).all() and (segment_ids == segment_ids[:, :1]).all():
        return None
    segments, sources = torch.from_numpy(segment_ids), torch.from_numpy(source_ids)
    same = segments[:, None, :, None] == sources[:, None, None, :]
    return same | (segments == 0)[:, None, :, None]
