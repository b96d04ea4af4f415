"""To prefer the chosen answer: direct preference optimization (arXiv 2305.18290, eq. 7).

A pair is two segments next to each other, prompt with chosen and prompt with rejected answer.
The loss of a pair is -log sigmoid(beta (d_chosen - d_rejected)); d is how much likelier the
answer became than it was for the model at the start, in nats over its tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raylm.config.train import TrainConfig
from raylm.data.shards import NO_TARGET, Batch
from raylm.train.lora import adapters_off, has_adapters
from raylm.train.objectives.causal import at_targets, next_token_logits
from raylm.train.objectives.intercept import inner
from raylm.train.objectives.objective import Ask, evaluating


class Dpo:
    """The chosen of two answers. `prepare` before `loss`."""

    name = "dpo"

    def __init__(self) -> None:
        self._beta = 0.1
        self.at_start: Ask | None = answer_log_probs

    def prepare(self, model: Any, config: TrainConfig) -> None:
        """With adapters, the model without them is what it was at the start."""
        self._beta = config.dpo_beta
        self.at_start = None if has_adapters(model) else answer_log_probs

    def loss(
        self, model: Any, batch: Batch, *, mask_documents: bool, whole_head: bool
    ) -> torch.Tensor:
        """Summed over the pairs, a float32 scalar. Answers are always kept apart."""
        with torch.no_grad():
            before = self._before(model, batch)
        change = answer_log_probs(model, batch) - before
        margin = change[:, 0::2] - change[:, 1::2]
        there = torch.from_numpy(num_segments(batch)[:, None] > 2 * np.arange(margin.shape[1]))
        losses = -F.logsigmoid(self._beta * margin)
        return (losses * there.to(losses.device)).sum()

    def _before(self, model: Any, batch: Batch) -> torch.Tensor:
        if self.at_start is None:
            with adapters_off(inner(model)), evaluating(model):
                return answer_log_probs(model, batch)
        assert batch.reference is not None, "the batch does not say what the model was"
        known = batch.reference[:, : _width(batch)]
        return torch.from_numpy(known).to(next(model.parameters()).device)

    def scores(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [t, vocabulary], targets [t] and rows [t], of chosen and rejected answers."""
        return at_targets(next_token_logits(model, batch, mask_documents=True), batch)


def answer_log_probs(model: Any, batch: Batch) -> torch.Tensor:
    """Log-probability of each segment's targets together, [n, segments of a row, made even]."""
    logits, targets, rows = at_targets(next_token_logits(model, batch, mask_documents=True), batch)
    found = -F.cross_entropy(logits, targets.to(logits.device), reduction="none")
    width = _width(batch)
    segments = torch.from_numpy(batch.segment_ids[batch.targets != NO_TARGET]).long() - 1
    index = (rows * width + segments).to(found.device)
    sums = found.new_zeros(len(batch.input_ids) * width).index_add(0, index, found)
    return sums.view(-1, width)


def _width(batch: Batch) -> int:
    width = int(num_segments(batch).max())
    return width + width % 2


def num_segments(batch: Batch) -> np.ndarray:
    """Segments in each row, [n]."""
    return batch.segment_ids.max(axis=1)


def chosen_alone(batch: Batch) -> Batch:
    """The batch without the rejected answers' targets."""
    keep = batch.segment_ids % 2 == 1
    return replace(batch, targets=np.where(keep, batch.targets, NO_TARGET))
