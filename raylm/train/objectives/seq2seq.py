"""Source to target: an encoder-decoder's cross-entropy of the target, in nats.

Three masks keep packed pairs apart: the encoder's attention, the decoder's, and the one that
leads from the decoder to the encoder, where a target sees its own source alone. T5's positions
are distances within a segment, which packing does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raylm.config.train import TrainConfig
from raylm.data.shards import Batch
from raylm.train.fused_loss import fused_loss
from raylm.train.objectives.causal import at_targets
from raylm.train.objectives.intercept import inner, named_input
from raylm.train.objectives.masks import cross_mask, document_mask, segment_mask
from raylm.train.objectives.padded import padded

# They take masks of any shape, and know no absolute positions. Others get padded rows.
_PACKED = {"T5ForConditionalGeneration", "MT5ForConditionalGeneration"}


class Seq2Seq:
    """The target of a source."""

    name = "seq2seq"
    at_start = None

    def prepare(self, model: Any, config: TrainConfig) -> None:
        """Nothing has to be known beforehand."""

    def loss(
        self, model: Any, batch: Batch, *, mask_documents: bool, whole_head: bool
    ) -> torch.Tensor:
        """Summed cross-entropy of the targets, a float32 scalar. Pairs are always kept apart:
        a target that sees other sources has learned nothing of translation.
        """
        packed = type(inner(model)).__name__ in _PACKED
        if packed and whole_head:
            hidden = _last_hidden(model, _inputs(model, batch, packed=True))
            targets = torch.from_numpy(batch.targets).to(hidden.device).flatten()
            rows = torch.nonzero(targets >= 0)[:, 0]
            return fused_loss(hidden.flatten(0, 1)[rows], model.lm_head.weight, targets[rows])
        logits, targets, _ = self.scores(model, batch)
        return F.cross_entropy(logits, targets.to(logits.device), reduction="sum")

    def scores(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [t, vocabulary], targets [t] and rows [t] of the batch's targets."""
        packed = type(inner(model)).__name__ in _PACKED
        if packed:
            return at_targets(_logits(model, _inputs(model, batch, packed=True)), batch)
        single, origin = padded(batch, inner(model).config.pad_token_id)
        found, targets, rows = at_targets(
            _logits(model, _inputs(model, single, packed=False)), single
        )
        return found, targets, torch.from_numpy(origin)[rows]


@dataclass(frozen=True, slots=True)
class _Inputs:
    source: torch.Tensor
    source_mask: torch.Tensor | None
    target: torch.Tensor
    target_mask: torch.Tensor | None
    cross: torch.Tensor | None


def _inputs(model: Any, batch: Batch, *, packed: bool) -> _Inputs:
    assert batch.source is not None, "the batch is not of pairs"
    device = next(model.parameters()).device
    source, ids = batch.source, batch.segment_ids
    if packed:
        masks = (
            segment_mask(source.segment_ids),
            document_mask(ids),
            cross_mask(ids, source.segment_ids),
        )
    else:
        there = torch.from_numpy(source.segment_ids > 0).long()
        masks = there, torch.from_numpy(ids > 0).long(), there
    own, causal, cross = (None if mask is None else mask.to(device) for mask in masks)
    return _Inputs(
        torch.from_numpy(source.input_ids).to(device), own,
        torch.from_numpy(_read(model, batch)).to(device), causal, cross,
    )  # fmt: skip


def _read(model: Any, batch: Batch) -> np.ndarray:
    """What the decoder reads, [n, L]: targets begin with the model's own start token, which a
    folder may have of another kind than the dataset (BART's is end-of-text).
    """
    start = inner(model).config.decoder_start_token_id
    if start is None:
        return batch.input_ids
    begins = (batch.segment_ids > 0) & (batch.position_ids == 0)
    return np.where(begins, start, batch.input_ids)


def _logits(model: Any, inputs: _Inputs) -> torch.Tensor:
    # transformers gives the decoder the encoder's own mask to look at it through.
    with named_input(inner(model).get_decoder(), "encoder_attention_mask", inputs.cross):
        logits: torch.Tensor = model(
            input_ids=inputs.source,
            attention_mask=inputs.source_mask,
            decoder_input_ids=inputs.target,
            decoder_attention_mask=inputs.target_mask,
            use_cache=False,
        ).logits
    return logits


def _last_hidden(model: Any, inputs: _Inputs) -> torch.Tensor:
    """What T5's head reads."""
    encoded = model.encoder(input_ids=inputs.source, attention_mask=inputs.source_mask)
    hidden: torch.Tensor = model.decoder(
        input_ids=inputs.target,
        attention_mask=inputs.target_mask,
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=inputs.cross,
        use_cache=False,
    ).last_hidden_state
    return hidden * model.model_dim**-0.5 if model.config.scale_decoder_outputs else hidden
