"""The check at start-up finds what leaks, on either side, and passes what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import raylm.train.objectives.causal as causal
import raylm.train.objectives.encoder as encoder
import raylm.train.objectives.seq2seq as seq2seq
from raylm.data.shards import NO_TARGET, Batch
from raylm.errors import TrainError
from raylm.train.leak import check_no_leak
from raylm.train.objectives.objective import objective_for
from tests.train.packing import draw, pack, pack_pairs, tiny


def case(name: str) -> tuple[Any, Batch]:
    """A tiny model and a batch whose second row has several segments."""
    rows = [draw(14), draw(5, 4, 4, seed=3)]
    batch = pack(rows, 16)
    if name == "seq2seq":
        return tiny("t5"), pack_pairs(rows, [draw(13, seed=1), draw(4, 5, 3, seed=2)], 16)
    if name == "mlm":
        return tiny("bert"), batch
    if name == "classify":
        labels = np.array([[1, NO_TARGET, NO_TARGET], [0, 1, 1]])
        batch = replace(batch, targets=np.full_like(batch.targets, NO_TARGET), labels=labels)
        return tiny("bert", head="classes", labels=["a", "b"]), batch
    if name == "dpo":
        return tiny("llama"), pack([draw(14), draw(3, 4, 3, 4)], 16)
    return tiny("llama"), batch


NAMES = ("causal", "sft", "seq2seq", "mlm", "classify", "dpo")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_models_pass(name: str, dtype: torch.dtype) -> None:
    model, batch = case(name)
    model.to(dtype).train()
    assert check_no_leak(model, batch, objective_for(name))
    assert model.training


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_that_is_lost_is_found(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (causal, seq2seq):
        monkeypatch.setattr(module, "document_mask", lambda segments: None)
    for module in (encoder, seq2seq):
        monkeypatch.setattr(module, "segment_mask", lambda segments: None)
    model, batch = case(name)
    batch = replace(batch, position_ids=np.arange(16)[None].repeat(2, 0))
    with pytest.raises(TrainError, match="lets documents of one row see each other") as caught:
        check_no_leak(model.to(dtype), batch, objective_for(name))
    assert caught.value.code == "train-leak"
    assert type(model).__name__ in caught.value.message


def test_attention_across_pairs_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seq2seq, "cross_mask", lambda segments, sources: None)
    model, batch = case("seq2seq")
    with pytest.raises(TrainError):
        check_no_leak(model, batch, objective_for("seq2seq"))


def test_rows_of_one_document_cannot_be_tried() -> None:
    batch = pack([draw(14), draw(12)], 16)
    assert not check_no_leak(tiny("llama"), batch, objective_for("causal"))
