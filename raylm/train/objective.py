"""What is minimised: the summed negative log-likelihood of a batch's targets, in nats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


def document_mask(segment_ids: np.ndarray) -> torch.Tensor | None:
    """Which position may look at which: [n, 1, L, L] bool, causal, within one document.

    None where every row is a single document: plain causal attention is then the same, and
    faster.
    """
    if (segment_ids == segment_ids[:, :1]).all():
        return None
    segments = torch.from_numpy(segment_ids)
    same = segments[:, None, :, None] == segments[:, None, None, :]
    length = segments.shape[1]
    return same & torch.ones(length, length, dtype=torch.bool).tril()


def next_token_loss(model: Any, batch: Any, *, mask_documents: bool) -> torch.Tensor:
    """Summed cross-entropy of the batch's targets (-100 is no target), a float32 scalar."""
    logits = next_token_logits(model, batch, mask_documents=mask_documents)
    targets = torch.from_numpy(batch.targets).to(logits.device)
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
    )


def next_token_logits(model: Any, batch: Any, *, mask_documents: bool) -> torch.Tensor:
    """The model's logits for a packed batch: [n, L, vocabulary]."""
    device = next(model.parameters()).device
    mask = document_mask(batch.segment_ids) if mask_documents else None
    # Positions that restart would by themselves tell transformers to mask documents.
    positions = batch.position_ids if mask_documents else np.arange(batch.input_ids.shape[1])[None]
    output = model(
        input_ids=torch.from_numpy(batch.input_ids).to(device),
        position_ids=torch.from_numpy(positions).to(device).long(),
        attention_mask=None if mask is None else mask.to(device),
        use_cache=False,
    )
    logits: torch.Tensor = output.logits
    return logits
