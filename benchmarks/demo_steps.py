"""The demo's training in one plain process, for a number of steps instead of a time.

No Ray, no DeepSpeed, and no clock: what differs between two settings here is what they learn from
the same samples. The dataset is that of the demo's recipe, made by `raylm data -c demo`.

    python benchmarks/demo_steps.py [--steps 340] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from raylm.config import load_config
from raylm.data.order import sample_indices
from raylm.data.shards import PackedSplit, token_bytes
from raylm.evaluate.scores import sequence_scores
from raylm.model.build import build_model
from raylm.model.folder import special_token_ids
from raylm.store import Store
from raylm.train.objectives.causal import next_token_loss
from raylm.train.schedule import lr_factor

SETTINGS: dict[str, list[str]] = {
    "recipe": [],
    "rate 1.2e-3": ["train.optimizer.lr=1.2e-3"],
    "rate 3e-3": ["train.optimizer.lr=3e-3"],
    "rate 5e-3": ["train.optimizer.lr=5e-3"],
    "half the batch": ["train.global_batch=2", "train.micro_batch=1"],
    "width 256, 2 layers": [
        "model.hidden_size=256", "model.num_heads=4", "model.num_kv_heads=4",
        "model.intermediate_size=640", "model.num_layers=2",
    ],
}  # fmt: skip
HELD_OUT = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=340, help="of the recipe's batch")
    parser.add_argument("--only", nargs="*", choices=list(SETTINGS), default=list(SETTINGS))
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "raylm", "data", "-c", "demo", "-o", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    dataset = Store().resolve(json.loads(done.stdout)["stages"][0]["ref"]).path
    for name in arguments.only:
        print(json.dumps({"setting": name, **train(dataset, SETTINGS[name], arguments.steps)}))


def train(dataset: Path, sets: list[str], recipe_steps: int) -> dict[str, float]:
    config = load_config("demo", sets).config
    options, size = config.train.optimizer, config.train.global_batch
    steps = recipe_steps * load_config("demo").config.train.global_batch // size
    split = PackedSplit.open(dataset, "train")
    torch.manual_seed(0)
    model = build_model(
        config.model,
        seq_len=split.seq_len,
        vocab_size=split.vocab_size,
        special_ids=special_token_ids(dataset / "tokenizer"),
    ).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=options.lr, betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
    )  # fmt: skip
    for step in range(steps):
        rows = sample_indices(0, split.num_samples, step * size, size)
        loss = next_token_loss(model, split.batch(rows), mask_documents=True)
        (loss / split.num_targets(rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * lr_factor(config.train.schedule, step, steps)
        optimizer.step()
        optimizer.zero_grad()
    return held_out(model.eval(), dataset)


def held_out(model: torch.nn.Module, dataset: Path) -> dict[str, float]:
    split, lengths = PackedSplit.open(dataset, "held_out"), token_bytes(dataset)
    rows = np.arange(HELD_OUT) * split.num_samples // HELD_OUT
    parts = [
        sequence_scores(model, split.batch(rows[i : i + 8]), lengths) for i in range(0, HELD_OUT, 8)
    ]
    nats, targets, num_bytes, hits = np.concatenate(parts).sum(0)
    return {
        "bits_per_byte": round(nats / math.log(2) / num_bytes, 4),
        "top1_accuracy": round(hits / targets, 4),
    }


if __name__ == "__main__":
    main()
