"""Hidden tokens of packed texts are scored as in each text alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM

from raylm.data.shards import NO_TARGET, Batch
from raylm.train.objectives.mlm import Mlm
from tests.train.packing import PAD, VOCAB, draw, pack, tiny

TEXTS = draw(6, 4, 5)


def masked() -> Batch:
    """Two rows; the second token of each text is hidden as 4, and its last one asked as it is."""
    batch = pack([TEXTS[:2], TEXTS[2:]], 12)
    ids, targets = batch.input_ids.copy(), np.full_like(batch.targets, NO_TARGET)
    for row, place in ((0, 1), (0, 7), (1, 1)):
        targets[row, place], ids[row, place] = ids[row, place], 4
    for row, place in ((0, 5), (0, 9), (1, 4)):
        targets[row, place] = ids[row, place]
    return replace(batch, input_ids=ids, targets=targets)


def roberta() -> RobertaForMaskedLM:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=PAD,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    return RobertaForMaskedLM(config).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_loss_and_scores_are_transformers_own_on_each_text(kind: str) -> None:
    model = tiny("bert") if kind == "bert" else roberta()
    batch = masked()
    expected, logits = 0.0, []
    for row, start, length in ((0, 0, 6), (0, 6, 4), (1, 0, 5)):
        place = slice(start, start + length)
        ids, wanted = batch.input_ids[row, place], batch.targets[row, place]
        with torch.no_grad():
            own = model(
                input_ids=torch.from_numpy(ids)[None], labels=torch.from_numpy(wanted)[None]
            )
        expected += float(own.loss) * 2
        logits.append(own.logits[0, torch.tensor(wanted >= 0)])
    loss = Mlm().loss(model, batch, mask_documents=True, whole_head=True)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        found, targets, rows = Mlm().scores(model, batch)
    torch.testing.assert_close(found, torch.cat(logits), rtol=1e-4, atol=1e-5)
    assert targets.tolist() == batch.targets[batch.targets >= 0].tolist()
    assert rows.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_unmasked_texts_see_each_other(kind: str) -> None:
    model = tiny("bert") if kind == "bert" else roberta()
    apart = Mlm().loss(model, masked(), mask_documents=True, whole_head=True)
    together = Mlm().loss(model, masked(), mask_documents=False, whole_head=True)
    assert abs(float(apart) - float(together)) > 1e-3


def test_a_batch_without_hidden_tokens_has_no_loss() -> None:
    batch = replace(masked(), targets=np.full((2, 12), NO_TARGET, np.int64))
    loss = Mlm().loss(tiny("bert"), batch, mask_documents=True, whole_head=True)
    loss.backward()
    assert float(loss) == 0
