"""The loss of a padded batch is the one that transformers' own classes give for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raylm.data.shards import NO_TARGET, Batch
from raylm.train.objectives.objective import objective_for
from tests.train.packing import draw, pack, pack_pairs, tiny

TEXTS = draw(9, 5, 7)
TARGETS = draw(4, 6, 3, seed=2)
ROWS, TARGET_ROWS = [[text] for text in TEXTS], [[target] for target in TARGETS]


def case(name: str) -> tuple[Any, Batch, dict[str, Any]]:
    """A model, rows of one document and padding, and the labels as transformers wants them."""
    batch = pack(ROWS, 12)
    if name == "seq2seq":
        batch = pack_pairs(ROWS, TARGET_ROWS, 12)
        return tiny("t5"), batch, {"labels": batch.targets}
    if name == "mlm":
        hidden = (batch.position_ids % 3 == 1) & (batch.segment_ids > 0)
        batch = replace(
            batch,
            input_ids=np.where(hidden, 4, batch.input_ids),
            targets=np.where(hidden, batch.input_ids, NO_TARGET),
        )
        return tiny("bert"), batch, {"labels": batch.targets}
    if name == "classify":
        labels = np.array([[2], [0], [1]])
        batch = replace(batch, targets=np.full_like(batch.targets, NO_TARGET), labels=labels)
        return tiny("bert", head="classes", labels=["a", "b", "c"]), batch, {"labels": labels[:, 0]}
    if name == "sft":
        batch = replace(batch, targets=np.where(batch.position_ids >= 3, batch.targets, NO_TARGET))
    # transformers shifts a decoder's labels by itself.
    labels = np.concatenate([np.full((3, 1), NO_TARGET), batch.targets[:, :-1]], axis=1)
    return tiny("llama"), batch, {"labels": labels}


@pytest.mark.parametrize("whole_head", [True, False])
@pytest.mark.parametrize("name", ["causal", "sft", "seq2seq", "mlm", "classify"])
def test_loss_and_gradients_are_transformers_own(name: str, whole_head: bool) -> None:
    model, batch, labels = case(name)
    read = batch.source or batch
    own = model(
        input_ids=torch.from_numpy(read.input_ids),
        attention_mask=torch.from_numpy(read.segment_ids > 0).long(),
        labels=torch.from_numpy(labels["labels"]),
    )
    own.loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    num_targets = int((labels["labels"] != NO_TARGET).sum())
    loss = objective_for(name).loss(model, batch, mask_documents=True, whole_head=whole_head)
    (loss / num_targets).backward()
    assert float(loss.detach()) / num_targets == pytest.approx(float(own.loss.detach()), rel=1e-6)
    for parameter, gradient in expected.items():
        found = model.get_parameter(parameter).grad
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)
