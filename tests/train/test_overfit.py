"""Every objective learns one batch by heart: nothing stands between it and a loss of nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from raylm.config.data import Format
from raylm.config.model import ModelConfig
from raylm.config.train import LoraConfig, ObjectiveName, TrainConfig
from raylm.data.shards import PackedSplit
from raylm.model.build import build_model
from raylm.model.folder import special_token_ids
from raylm.train.lora import add_adapters
from raylm.train.objectives.objective import head_of, objective_for
from raylm.train.source import Source, SpecialTokens
from tests.train.records import write_dataset
from tests.train.series import PRESET_OF

STEPS = 80
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("objective", "format", "rank", "first"),
    [
        ("causal", "text", 0, np.log(96)), ("sft", "chat", 0, np.log(96)),
        ("seq2seq", "pairs", 0, np.log(96) + 1),
        ("mlm", "text", 0, np.log(96)), ("classify", "labels", 0, np.log(3)),
        ("dpo", "preferences", 0, np.log(2)), ("dpo", "preferences", 16, np.log(2)),
    ],
)  # fmt: skip
def test_one_batch_is_learned_by_heart(
    objective: ObjectiveName, format: Format, rank: int, first: float, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", format)
    split = PackedSplit.open(data, "train")
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(preset=PRESET_OF[objective], **SIZES),
        seq_len=split.seq_len, vocab_size=split.vocab_size,
        special_ids=special_token_ids(data / "tokenizer"), head=head_of(objective),
        labels=split.labels,
    )  # fmt: skip
    config = TrainConfig(
        objective=objective, workers=1, dpo_beta=0.5 if objective == "dpo" else 0.1
    )
    if rank:
        add_adapters(model, LoraConfig(rank=rank, alpha=2 * rank))
    learned = objective_for(objective)
    learned.prepare(model, config)
    source = Source(split, 0, objective, SpecialTokens.of(data / "tokenizer"))
    rows = np.arange(2)
    if learned.at_start:
        with torch.no_grad():
            source.reference = learned.at_start(model, source.in_order(rows)).numpy()
    batch, num_targets = source.in_order(rows), source.num_targets_in_order(rows)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = learned.loss(model, batch, mask_documents=True, whole_head=True) / num_targets
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(first, rel=0.1)
    assert losses[-1] < 0.05
