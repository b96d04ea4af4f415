"""Classes of packed texts are those that transformers gives each text alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from raylm.data.shards import NO_TARGET, Batch
from raylm.train.objectives.classify import Classify
from tests.train.packing import PAD, VOCAB, draw, pack, tiny

TEXTS = draw(6, 4, 5)
LABELS = (2, 0, 1)


def labelled() -> Batch:
    batch = pack([TEXTS[:2], TEXTS[2:]], 12)
    labels = np.array([[LABELS[0], LABELS[1]], [LABELS[2], NO_TARGET]])
    return replace(batch, targets=np.full_like(batch.targets, NO_TARGET), labels=labels)


def model_of(kind: str):
    if kind == "bert":
        return tiny("bert", head="classes", labels=["a", "b", "c"])
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=VOCAB, dim=32, hidden_dim=64, n_layers=2, n_heads=2, num_labels=3,
        max_position_embeddings=64, pad_token_id=PAD, initializer_range=0.2,
    )  # fmt: skip
    return DistilBertForSequenceClassification(config).eval()


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_loss_and_scores_are_transformers_own_on_each_text(kind: str) -> None:
    model = model_of(kind)
    own = [
        model(input_ids=torch.tensor([text]), labels=torch.tensor([label]))
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    expected = sum(o.loss for o in own)
    gradients = torch.autograd.grad(expected, model.classifier.weight)
    loss = Classify().loss(model, labelled(), mask_documents=True, whole_head=True)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(loss, model.classifier.weight), gradients, rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        logits, labels, rows = Classify().scores(model, labelled())
    torch.testing.assert_close(logits, torch.cat([o.logits for o in own]), rtol=1e-4, atol=1e-5)
    assert labels.tolist() == list(LABELS)
    assert rows.tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_text_without_a_label_is_not_scored(kind: str) -> None:
    batch = labelled()
    assert batch.labels is not None
    batch.labels[0, 0] = NO_TARGET
    with torch.no_grad():
        logits, labels, rows = Classify().scores(model_of(kind), batch)
    assert (len(logits), labels.tolist(), rows.tolist()) == (2, [0, 1], [0, 1])
