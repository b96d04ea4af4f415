"""A document costs the same in a packed row and in a row of its own, whatever is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raylm.config.data import Format
from raylm.config.model import ModelConfig
from raylm.config.train import ObjectiveName
from raylm.data.shards import NO_TARGET, Batch, PackedSplit
from raylm.model.build import build_model
from raylm.model.folder import special_token_ids
from raylm.train.objectives.objective import head_of, objective_for
from raylm.train.objectives.padded import padded
from raylm.train.source import Source, SpecialTokens
from tests.train.records import NUM_RECORDS, write_dataset
from tests.train.series import PRESET_OF, SMALL

CASES: list[tuple[ObjectiveName, Format]] = [
    ("causal", "chat"), ("sft", "chat"), ("seq2seq", "pairs"), ("classify", "labels"),
    ("dpo", "preferences"),
]  # fmt: skip


def model_for(split: PackedSplit, objective: ObjectiveName, tokenizer: Path) -> Any:
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(preset=PRESET_OF[objective], **SMALL),
        seq_len=split.seq_len, vocab_size=split.vocab_size,
        special_ids=special_token_ids(tokenizer), head=head_of(objective), labels=split.labels,
    ).eval()  # fmt: skip
    with torch.no_grad():  # a new model hardly attends to anything
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def losses(model: Any, batch: Batch, objective: ObjectiveName) -> torch.Tensor:
    """Nats of every target, in their order."""
    with torch.no_grad():
        scores, targets, _ = objective_for(objective).scores(model, batch)
    return F.cross_entropy(scores, targets, reduction="none").double()


def by_document(split: PackedSplit, model: Any, objective: ObjectiveName) -> dict[str, float]:
    """Nats of each segment of each document, all rows in one batch."""
    rows = np.arange(split.num_samples)
    batch = split.batch(rows)
    names = [
        [f"{piece.document_id} from {piece.token_offset}" for piece in split.trace(row)]
        for row in rows.tolist()
    ]
    nll = losses(model, batch, objective)
    if objective == "classify":
        return dict(zip((n for row in names for n in row), nll.tolist(), strict=True))
    found: dict[str, float] = {}
    for (row, place), value in zip(np.argwhere(batch.targets != NO_TARGET), nll, strict=True):
        name = names[row][batch.segment_ids[row, place] - 1]
        found[name] = found.get(name, 0.0) + float(value)
    return found


@pytest.mark.parametrize(("objective", "format"), CASES)
def test_every_document_costs_the_same_packed_and_padded(
    objective: ObjectiveName, format: Format, tmp_path: Path
) -> None:
    layouts = {packed: tmp_path / str(packed) for packed in (True, False)}
    splits = {
        packed: PackedSplit.open(write_dataset(root, format, packed=packed), "train")
        for packed, root in layouts.items()
    }
    model = model_for(splits[True], objective, layouts[True] / "tokenizer")
    packed, alone = (by_document(splits[p], model, objective) for p in (True, False))
    assert packed.keys() == alone.keys()
    assert len(packed) == NUM_RECORDS * (2 if objective == "dpo" else 1)
    assert list(packed.values()) == pytest.approx([alone[name] for name in packed], rel=1e-5)
    assert len({round(value, 6) for value in packed.values()}) > NUM_RECORDS // 2


def test_hidden_tokens_cost_the_same_packed_and_padded(tmp_path: Path) -> None:
    """Which are hidden depends on the place in the row: the same draw is laid out anew."""
    split = PackedSplit.open(write_dataset(tmp_path / "d", "text"), "train")
    tokenizer = tmp_path / "d" / "tokenizer"
    batch = Source(split, 0, "mlm", SpecialTokens.of(tokenizer)).in_order(np.arange(8))
    model = model_for(split, "mlm", tokenizer)
    packed = losses(model, batch, "mlm")
    single, _ = padded(batch, None)
    assert len(single.input_ids) == NUM_RECORDS
    assert len(packed) > 20
    torch.testing.assert_close(packed, losses(model, single, "mlm"), rtol=1e-5, atol=1e-6)
