"""Packing never leaks: what one document says does not reach another in the same sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from raylm.data.shards import NO_TARGET, Batch
from raylm.model.build import llama_config
from raylm.model.shapes import DecoderShape
from raylm.train.objectives.causal import next_token_logits, next_token_loss
from raylm.train.objectives.masks import document_mask

LENGTHS = (5, 4, 3)  # and the rest of twelve is padding


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    torch.manual_seed(0)
    yield LlamaForCausalLM(llama_config(DecoderShape(32, 64, 2, 2, 1, 64), 50, {})).eval()


@pytest.fixture
def batch() -> Batch:
    """One sequence of 14: three documents and two tokens of padding."""
    segments = np.repeat([1, 2, 3, 0], [*LENGTHS, 2]).astype(np.int32)[None]
    positions = np.concatenate([np.arange(n) for n in (*LENGTHS, 2)])[None].astype(np.int64)
    ids = np.random.default_rng(0).integers(0, 50, (1, 14))
    targets = np.full_like(ids, NO_TARGET)
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    np.copyto(targets[:, :-1], ids[:, 1:], where=same)
    return Batch(ids, segments, positions, targets)


def logits(model: Any, batch: Batch, mask: bool = True) -> torch.Tensor:
    with torch.no_grad():
        return next_token_logits(model, batch, mask_documents=mask)[0]


def test_a_changed_document_leaves_the_others_as_they_were(model: Any, batch: Batch) -> None:
    ids = batch.input_ids.copy()
    ids[0, :5] = (ids[0, :5] + 7) % 50
    before, after = logits(model, batch), logits(model, replace(batch, input_ids=ids))
    assert (before[5:12] - after[5:12]).abs().max() == 0
    assert (before[:5] - after[:5]).abs().max() > 0.01


def test_unmasked_documents_do_see_each_other(model: Any, batch: Batch) -> None:
    ids = batch.input_ids.copy()
    ids[0, :5] = (ids[0, :5] + 7) % 50
    before = logits(model, batch, mask=False)
    after = logits(model, replace(batch, input_ids=ids), mask=False)
    assert (before[5:12] - after[5:12]).abs().max() > 1e-4


def test_a_packed_document_has_the_logits_of_the_document_alone(model: Any, batch: Batch) -> None:
    packed = logits(model, batch)
    with torch.no_grad():
        alone = model(torch.from_numpy(batch.input_ids[:, 5:9])).logits[0]
    torch.testing.assert_close(packed[5:9], alone, rtol=1e-4, atol=1e-5)


def test_one_document_needs_no_mask(batch: Batch) -> None:
    assert document_mask(np.ones((2, 5), np.int32)) is None
    mask = document_mask(batch.segment_ids)
    assert mask is not None
    assert mask.shape == (1, 1, 14, 14)
    assert mask[0, 0].sum() == sum(n * (n + 1) // 2 for n in (*LENGTHS, 2))


@pytest.mark.parametrize("whole_head", [True, False])
def test_the_loss_is_the_sum_over_targets_within_documents(
    model: Any, batch: Batch, whole_head: bool
) -> None:
    loss = next_token_loss(model, batch, mask_documents=True, whole_head=whole_head)
    rows = np.flatnonzero(batch.targets[0] >= 0)
    assert len(rows) == sum(LENGTHS) - len(LENGTHS)
    expected = F.cross_entropy(
        logits(model, batch)[rows], torch.from_numpy(batch.targets[0, rows]), reduction="sum"
    )
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
