"""What is minimised: the summed negative log-likelihood of a batch's targets, in nats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raylm.data.shards import Batch
from raylm.train.fused_loss import fused_loss


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


# Their logits are the last hidden states times the head and nothing else.
_PLAIN_HEADS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}


def next_token_loss(
    model: Any, batch: Batch, *, mask_documents: bool, whole_head: bool = True
) -> torch.Tensor:
    """Summed cross-entropy of the batch's targets (-100 is no target), a float32 scalar.

    Args:
        whole_head: the head's weight can be read outside its module's forward pass (ZeRO-3
            has it only inside); a plain head is then fused with the loss.
    """
    if not (whole_head and type(model).__name__ in _PLAIN_HEADS):
        logits = next_token_logits(model, batch, mask_documents=mask_documents)
        targets = torch.from_numpy(batch.targets).to(logits.device)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
        )
    hidden = model.model(**_inputs(model, batch, mask_documents)).last_hidden_state
    targets = torch.from_numpy(batch.targets).to(hidden.device).flatten()
    rows = torch.nonzero(targets >= 0)[:, 0]
    return fused_loss(hidden.flatten(0, 1)[rows], model.lm_head.weight, targets[rows])


def next_token_logits(model: Any, batch: Batch, *, mask_documents: bool) -> torch.Tensor:
    """The model's logits for a packed batch: [n, L, vocabulary]."""
    logits: torch.Tensor = model(**_inputs(model, batch, mask_documents)).logits
    return logits


def _inputs(model: Any, batch: Batch, mask_documents: bool) -> dict[str, Any]:
    device = next(model.parameters()).device
    mask = document_mask(batch.segment_ids) if mask_documents else None
    # Positions that restart would by themselves tell transformers to mask documents.
    positions = batch.position_ids if mask_documents else np.arange(batch.input_ids.shape[1])[None]
    return {
        "input_ids": torch.from_numpy(batch.input_ids).to(device),
        "position_ids": torch.from_numpy(positions).to(device).long(),
        "attention_mask": None if mask is None else mask.to(device),
        "use_cache": False,
    }
