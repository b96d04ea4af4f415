"""The next token: the summed negative log-likelihood of a batch's targets, in nats.

Supervised fine-tuning is the same loss; which tokens are targets is the data's to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raylm.config.train import TrainConfig
from raylm.data.shards import Batch
from raylm.model.document_attention import spans_for, use_document_attention
from raylm.model.varlen_attention import documents_for, use_varlen_attention
from raylm.train.fused_loss import fused_loss
from raylm.train.objectives.intercept import inner
from raylm.train.objectives.masks import document_mask


class Causal:
    """The next token of every document."""

    name = "causal"
    at_start = None

    def prepare(self, model: Any, config: TrainConfig) -> None:
        """Take the attention that is told where documents begin, for CPUs or for GPUs."""
        if config.gpus_per_worker:
            use_varlen_attention(model)
        else:
            use_document_attention(model)

    def loss(
        self, model: Any, batch: Batch, *, mask_documents: bool, whole_head: bool
    ) -> torch.Tensor:
        """Summed cross-entropy of the targets, a float32 scalar."""
        return next_token_loss(model, batch, mask_documents=mask_documents, whole_head=whole_head)

    def scores(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [t, vocabulary], targets [t] and rows [t] of the batch's targets."""
        logits = next_token_logits(model, batch, mask_documents=True)
        return at_targets(logits, batch)


class Sft(Causal):
    """The next token of answers alone."""

    name = "sft"


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


def at_targets(
    logits: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of logits [n, L, C] those that have a target, float32 [t, C]; the targets [t]; rows [t]."""
    targets = torch.from_numpy(batch.targets)
    rows, places = torch.nonzero(targets >= 0, as_tuple=True)
    found = logits[rows.to(logits.device), places.to(logits.device)].float()
    return found, targets[rows, places], rows


def _inputs(model: Any, batch: Batch, mask_documents: bool) -> dict[str, Any]:
    device = next(model.parameters()).device
    where = _documents(inner(model), batch.segment_ids, apart=mask_documents)
    mask = document_mask(batch.segment_ids) if mask_documents and not where else None
    # Positions that restart would by themselves tell transformers to mask documents.
    positions = batch.position_ids if mask_documents else np.arange(batch.input_ids.shape[1])[None]
    return {
        "input_ids": torch.from_numpy(batch.input_ids).to(device),
        "position_ids": torch.from_numpy(positions).to(device).long(),
        "attention_mask": None if mask is None else mask.to(device),
        "use_cache": False,
        **where,
    }


def _documents(model: Any, segment_ids: np.ndarray, *, apart: bool) -> dict[str, Any]:
    """What tells the model's attention where documents lie; empty where only a mask can."""
    if (spans := spans_for(model, segment_ids, apart=apart)) is not None:
        return {"spans": spans}
    documents = documents_for(model, segment_ids) if apart else None
    return {} if documents is None else {"documents": documents}
