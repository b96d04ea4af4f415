"""Figures of every objective come from the same scores, whatever shares a row."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from raylm.evaluate.figures import difference_figures, held_out_figures
from raylm.evaluate.scores import sequence_differences, sequence_scores
from raylm.train.objectives.objective import objective_for
from tests.train.packing import VOCAB
from tests.train.test_leak import NAMES, case

BYTES = np.arange(VOCAB)


@pytest.mark.parametrize("name", NAMES)
def test_sums_by_row_are_the_loss(name: str) -> None:
    model, batch = case(name)
    objective = objective_for(name)
    rows = sequence_scores(model, batch, objective, BYTES)
    with torch.no_grad():
        if name == "dpo":
            logits, targets, _ = objective.scores(model, batch)
            chosen = torch.from_numpy(batch.segment_ids[batch.targets >= 0] % 2 == 1)
            loss = torch.nn.functional.cross_entropy(
                logits[chosen], targets[chosen], reduction="sum"
            )
            assert rows[:, 4].tolist() == [0, 2]
            assert (rows[:, 5] <= rows[:, 4]).all()
        else:
            loss = objective.loss(model, batch, mask_documents=True, whole_head=True)
    assert rows[:, 0].sum() == pytest.approx(float(loss), rel=1e-5)
    counts = (batch.labels >= 0).sum(1) if batch.labels is not None else None
    if name not in ("classify", "dpo"):
        counts = (batch.targets >= 0).sum(1)
        assert rows[:, 2].tolist() == np.where(batch.targets >= 0, batch.targets, 0).sum(1).tolist()
    if counts is not None:
        assert rows[:, 1].tolist() == counts.tolist()
    figures = held_out_figures(rows, objective.name)  # type: ignore[arg-type]
    assert figures["loss"].value == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_no_distance_from_itself_and_some_from_another(name: str) -> None:
    model, batch = case(name)
    other = deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    objective = objective_for(name)
    same = difference_figures(sequence_differences(model, model, batch, objective))
    assert same["kl"].value == pytest.approx(0, abs=1e-6)
    assert same["top1_agreement"].value == 1
    moved = difference_figures(sequence_differences(other, model, batch, objective))
    assert moved["kl"].value > 1e-4
