"""What both objectives of encoders need: the inputs of packed rows, or of padded ones."""

from __future__ import annotations

from typing import Any

import torch

from raylm.data.shards import Batch
from raylm.train.objectives.intercept import inner
from raylm.train.objectives.masks import segment_mask

# They take positions as they are given and masks of any shape. Others get padded rows.
_PACKED = {"BertForMaskedLM", "BertForSequenceClassification"}


def can_pack(model: Any) -> bool:
    """Whether a model keeps the segments of a row apart when it is told them."""
    return type(inner(model)).__name__ in _PACKED


def packed_inputs(model: Any, batch: Batch, *, mask_documents: bool = True) -> dict[str, Any]:
    """Arguments for packed rows: masks within segments, positions that start anew in each."""
    device = next(model.parameters()).device
    mask = segment_mask(batch.segment_ids) if mask_documents else None
    ids = torch.from_numpy(batch.input_ids).to(device)
    inputs = {"input_ids": ids, "attention_mask": None if mask is None else mask.to(device)}
    if mask_documents:
        inputs["position_ids"] = torch.from_numpy(batch.position_ids).to(device)
    return inputs


def padded_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Arguments for rows of one segment and padding."""
    device = next(model.parameters()).device
    return {
        "input_ids": torch.from_numpy(batch.input_ids).to(device),
        "attention_mask": torch.from_numpy(batch.segment_ids > 0).long().to(device),
    }
