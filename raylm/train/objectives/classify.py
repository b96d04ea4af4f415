"""A text's class: the cross-entropy of each label, in nats, read off a text's first token."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from raylm.config.train import TrainConfig
from raylm.data.shards import Batch
from raylm.train.objectives.encoder import can_pack, packed_inputs, padded_inputs
from raylm.train.objectives.intercept import first_input, inner
from raylm.train.objectives.padded import padded, segment_ranges

Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Classify:
    """The class of each text of a row."""

    name = "classify"
    at_start = None

    def prepare(self, model: Any, config: TrainConfig) -> None:
        """Nothing has to be known beforehand."""

    def loss(
        self, model: Any, batch: Batch, *, mask_documents: bool, whole_head: bool
    ) -> torch.Tensor:
        """Summed cross-entropy of the labels, a float32 scalar. Texts are always kept apart."""
        logits, labels, _ = self.scores(model, batch)
        return F.cross_entropy(logits, labels.to(logits.device), reduction="sum")

    def scores(self, model: Any, batch: Batch) -> Scores:
        """Logits [t, classes], labels [t] and rows [t] of the texts that have a label."""
        assert batch.labels is not None, "the batch has no labels"
        rows, starts, _ = segment_ranges(batch.segment_ids)
        labels = batch.labels[rows, batch.segment_ids[rows, starts] - 1]
        logits = _packed(model, batch, rows, starts) if can_pack(model) else _padded(model, batch)
        known = torch.from_numpy(labels >= 0)
        return (
            logits.float()[known.to(logits.device)],
            torch.from_numpy(labels)[known],
            torch.from_numpy(rows)[known],
        )


def _packed(model: Any, batch: Batch, rows: Any, starts: Any) -> torch.Tensor:
    def first_tokens(states: torch.Tensor) -> torch.Tensor:
        # The pooler takes the first token of each row: every text becomes one, of one token.
        return states[torch.from_numpy(rows), torch.from_numpy(starts)][:, None]

    with first_input(inner(model).bert.pooler, first_tokens):
        logits: torch.Tensor = model(**packed_inputs(model, batch)).logits
    return logits


def _padded(model: Any, batch: Batch) -> torch.Tensor:
    single, _ = padded(batch, inner(model).config.pad_token_id)
    logits: torch.Tensor = model(**padded_inputs(model, single)).logits
    return logits
