"""Preferences: the paper's loss on each pair, against what the model was at the start."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raylm.config.train import LoraConfig, TrainConfig
from raylm.data.shards import NO_TARGET, Batch
from raylm.train.lora import add_adapters
from raylm.train.objectives.dpo import Dpo, answer_log_probs, chosen_alone
from tests.train.packing import draw, pack, tiny

PROMPT = 2  # tokens of each segment that are no answer
SEGMENTS = draw(6, 5, 4, 7, 5, 6)  # three pairs
CONFIG = TrainConfig(objective="dpo", dpo_beta=0.5)


def pairs() -> Batch:
    """Two pairs in the first row, one in the second."""
    batch = pack([SEGMENTS[:4], SEGMENTS[4:]], 24)
    answer = batch.position_ids >= PROMPT - 1
    return replace(batch, targets=np.where(answer, batch.targets, NO_TARGET))


def alone(model: Any, segment: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([segment])).logits[0, :-1]
    found = F.log_softmax(logits, -1).gather(1, torch.tensor(segment[1:])[:, None])[:, 0]
    return found[PROMPT - 1 :].sum()


def expected_loss(model: Any, reference: Any, beta: float) -> torch.Tensor:
    total = torch.zeros(())
    for k in range(3):
        chosen, rejected = SEGMENTS[2 * k], SEGMENTS[2 * k + 1]
        with torch.no_grad():
            was = alone(reference, chosen) - alone(reference, rejected)
        now = alone(model, chosen) - alone(model, rejected)
        total = total - F.logsigmoid(beta * (now - was))
    return total


def moved(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def loss_of(objective: Dpo, model: Any, batch: Batch) -> torch.Tensor:
    return objective.loss(model, batch, mask_documents=True, whole_head=True)


def test_log_probabilities_are_summed_over_each_answer() -> None:
    model = tiny("llama")
    with torch.no_grad():
        found = answer_log_probs(model, pairs())
        expected = torch.stack([alone(model, segment) for segment in SEGMENTS])
    torch.testing.assert_close(found[0], expected[:4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, :2], expected[4:], rtol=1e-5, atol=1e-5)
    assert found[1, 2:].tolist() == [0, 0]


def test_a_pair_costs_log_two_at_the_start_and_the_papers_loss_after_it() -> None:
    model = tiny("llama").train()
    objective, reference = Dpo(), deepcopy(model)
    objective.prepare(model, CONFIG)
    assert objective.at_start is answer_log_probs
    with torch.no_grad():
        batch = replace(pairs(), reference=answer_log_probs(model, pairs()).numpy())
    assert float(loss_of(objective, model, batch)) == pytest.approx(3 * math.log(2), rel=1e-6)
    moved(model)
    found, expected = loss_of(objective, model, batch), expected_loss(model, reference, 0.5)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(found) - 3 * math.log(2)) > 0.01
    weight = model.model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(
        torch.autograd.grad(found, weight), torch.autograd.grad(expected, weight),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_with_adapters_the_model_without_them_is_the_reference() -> None:
    model = tiny("llama").train()
    reference = deepcopy(model)
    add_adapters(model, LoraConfig(rank=4, dropout=0.0))
    objective = Dpo()
    objective.prepare(model, CONFIG)
    assert objective.at_start is None
    assert float(loss_of(objective, model, pairs())) == pytest.approx(3 * math.log(2), rel=1e-6)
    moved(model)
    expected = expected_loss(model, reference, 0.5)
    assert float(loss_of(objective, model, pairs())) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(expected) - 3 * math.log(2)) > 0.01
    assert model.training


def test_chosen_alone_keeps_the_first_of_each_pair() -> None:
    batch = chosen_alone(pairs())
    kept = batch.targets >= 0
    assert set(batch.segment_ids[kept]) == {1, 3}
    assert kept.sum() == sum(len(SEGMENTS[k]) - PROMPT for k in (0, 2, 4))
