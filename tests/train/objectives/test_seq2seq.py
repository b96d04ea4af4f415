"""Packed pairs are translated as each alone, by T5 in one piece and by others row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raylm.data.shards import NO_TARGET
from raylm.train.objectives.masks import cross_mask
from raylm.train.objectives.seq2seq import Seq2Seq
from tests.train.packing import PAD, draw, pack_pairs, tiny

SOURCES = draw(6, 4, 5, seed=1)
TARGETS = draw(3, 5, 4, seed=2)


def packed(length: int = 16) -> Any:
    """Two rows: two pairs and padding, one pair and padding."""
    return pack_pairs([SOURCES[:2], SOURCES[2:]], [TARGETS[:2], TARGETS[2:]], length)


def own_loss(model: Any, source: list[int], target: list[int]) -> torch.Tensor:
    """transformers' own, summed over the target."""
    output = model(input_ids=torch.tensor([source]), labels=torch.tensor([target]))
    return output.loss * len(target)


@pytest.mark.parametrize(("kind", "whole"), [("t5", True), ("t5", False), ("bart", False)])
def test_loss_and_gradients_are_those_of_each_pair_alone(kind: str, whole: bool) -> None:
    model = tiny(kind)
    loss = Seq2Seq().loss(model, packed(), mask_documents=True, whole_head=whole)
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = sum(own_loss(model, s, t) for s, t in zip(SOURCES, TARGETS, strict=True))
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert found.keys() >= {n for n, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_scores_are_those_of_each_pair_alone(kind: str) -> None:
    model = tiny(kind)
    with torch.no_grad():
        logits, targets, rows = Seq2Seq().scores(model, packed())
        alone = [
            model(input_ids=torch.tensor([s]), labels=torch.tensor([t])).logits[0]
            for s, t in zip(SOURCES, TARGETS, strict=True)
        ]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert targets.tolist() == [token for target in TARGETS for token in target]
    assert rows.tolist() == [0] * 8 + [1] * 4


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_target_begins_with_the_models_own_start_whatever_the_datasets_is(kind: str) -> None:
    model, batch = tiny(kind), packed()
    model.config.decoder_start_token_id = 1
    assert batch.input_ids[0, 0] == PAD
    with torch.no_grad():
        loss = Seq2Seq().loss(model, batch, mask_documents=True, whole_head=True)
        expected = sum(own_loss(model, s, t) for s, t in zip(SOURCES, TARGETS, strict=True))
        model.config.decoder_start_token_id = PAD
        other = Seq2Seq().loss(model, batch, mask_documents=True, whole_head=True)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(other) - float(loss)) > 1e-3


def test_places_in_the_row_do_not_matter_to_relative_positions() -> None:
    """The same pair first and second in a row: distances within it are the same."""
    model = tiny("t5")
    first = pack_pairs([SOURCES[:2]], [TARGETS[:2]], 16)
    second = pack_pairs([SOURCES[1::-1]], [TARGETS[1::-1]], 16)
    with torch.no_grad():
        one, other = (Seq2Seq().scores(model, b)[0] for b in (first, second))
    torch.testing.assert_close(one[:3], other[5:], rtol=1e-4, atol=1e-5)


def test_padding_of_a_target_sees_something_where_the_sources_fill_the_row() -> None:
    mask = cross_mask(np.array([[1, 2, 0]]), np.array([[1, 1, 2]]))
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, True, False], [False, False, True], [True] * 3]
    assert cross_mask(np.ones((2, 3), int), np.ones((2, 4), int)) is None
    model = tiny("t5")
    full = pack_pairs([SOURCES[:2]], [TARGETS[:2]], 10)
    assert (full.source.segment_ids > 0).all()
    assert (full.targets == NO_TARGET).any()
    loss = Seq2Seq().loss(model, full, mask_documents=True, whole_head=True)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
