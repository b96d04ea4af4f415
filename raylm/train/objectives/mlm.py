"""Hidden tokens: an encoder's cross-entropy of what was masked (BERT, arXiv 1810.04805), nats.

Which tokens are hidden, and as what, is in the batch already (raylm/train/source.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from raylm.config.train import TrainConfig
from raylm.data.shards import Batch
from raylm.train.objectives.causal import at_targets
from raylm.train.objectives.encoder import can_pack, packed_inputs, padded_inputs
from raylm.train.objectives.intercept import first_input, inner
from raylm.train.objectives.padded import padded

Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Mlm:
    """The tokens that were hidden."""

    name = "mlm"
    at_start = None

    def prepare(self, model: Any, config: TrainConfig) -> None:
        """Nothing has to be known beforehand."""

    def loss(
        self, model: Any, batch: Batch, *, mask_documents: bool, whole_head: bool
    ) -> torch.Tensor:
        """Summed cross-entropy of the targets, a float32 scalar."""
        logits, targets, _ = _scores(model, batch, mask_documents)
        return F.cross_entropy(logits, targets.to(logits.device), reduction="sum")

    def scores(self, model: Any, batch: Batch) -> Scores:
        """Logits [t, vocabulary], targets [t] and rows [t] of the hidden tokens."""
        return _scores(model, batch, True)


def _scores(model: Any, batch: Batch, mask_documents: bool) -> Scores:
    if not can_pack(model):
        if not mask_documents:
            whole = (batch.segment_ids > 0).astype(batch.segment_ids.dtype)
            batch = replace(batch, segment_ids=whole)
        single, origin = padded(batch, inner(model).config.pad_token_id)
        logits = model(**padded_inputs(model, single)).logits
        found, targets, rows = at_targets(logits, single)
        return found, targets, torch.from_numpy(origin)[rows]
    targets = torch.from_numpy(batch.targets)
    rows, places = torch.nonzero(targets >= 0, as_tuple=True)

    def hidden_ones(states: torch.Tensor) -> torch.Tensor:
        # The head costs as much as layers: it is asked for the 15 % alone.
        return states[rows.to(states.device), places.to(states.device)]

    inputs = packed_inputs(model, batch, mask_documents=mask_documents)
    with first_input(inner(model).cls, hidden_ones):
        logits = model(**inputs).logits
    return logits.float(), targets[rows, places], rows
