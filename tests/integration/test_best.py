"""What two ranks write of an adapter's training: its best checkpoint, found beside it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from raylm.artifact import Artifact, write_atomic
from raylm.config import Loaded
from raylm.config.model import ModelConfig
from raylm.config.train import AsideConfig, CheckpointConfig, LoraConfig
from raylm.data.shards import PackedSplit
from raylm.record import RunResult
from raylm.stage import CHECKPOINTS
from raylm.store import Store
from raylm.train.adapter import ADAPTER
from raylm.train.aside import ASIDE
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.held_out import held_out_rows
from raylm.train.metrics import METRICS, read_metrics
from raylm.train.signs import read_signs
from raylm.train.source import Source, SpecialTokens
from tests.integration.test_faults import Training

# Minutes, for a look aside waits for a core: not in `make test`.
pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(900)]


def test_an_adapters_best_checkpoint_is_found_beside_the_training_kept_and_written(
    finished: RunResult, store: Store, loaded: Loaded, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    trained = finished.of("train")
    assert trained is not None
    base = store.resolve(str(trained.ref))
    model = ModelConfig(path=str(base.path))
    adapted = replace(loaded, config=loaded.config.model_copy(update={"model": model}))
    changes = {
        "zero": 3,
        "steps": 40,
        "lora": LoraConfig(rank=8, alpha=16.0),
        "result": "best",
        "checkpoint": CheckpointConfig(every_steps=5, keep=1, keep_best=1),
        # Two workers have the test's two cores.
        "validate_aside": AsideConfig(num_cpus=0),
        "hang_s": 0.0,
    }
    dataset = store.list("dataset")[0]
    run = Training(adapted, store, dataset, tmp_path, changes).start()
    # The training would be over before a look at a checkpoint is: it waits.
    run.until(run.has_checkpoint)
    run.until(lambda: len(read_signs(tmp_path)) == 2)
    ranks = [sign.pid for sign in read_signs(tmp_path)]
    try:
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        run.until(lambda: any((tmp_path / ASIDE).glob("*.json")))
        (file,) = (tmp_path / ASIDE).glob("*.json")
        found = json.loads(file.read_text())
        # The model learns on, and its last step would be the best: said to be better, this one is.
        write_atomic(file, json.dumps({**found, "held_out_loss": 0.5}))
    finally:
        for pid in ranks:
            os.kill(pid, signal.SIGCONT)
    run.end()
    assert run.model is not None
    best = found["step"]
    lines = list(read_metrics(tmp_path / METRICS))
    (result,) = (line["result"] for line in lines if "result" in line)
    last = next(x["held_out_loss"] for x in lines if "held_out_loss" in x and x["step"] == 40)
    assert (result["step"], result["held_out_loss"], result["last_held_out_loss"]) == (
        best, 0.5, last,
    )  # fmt: skip
    assert run.model.manifest.metrics["result"] == result
    kept = [c.progress.step for c in complete_checkpoints(tmp_path / CHECKPOINTS)]
    # A look that the end cut short may have held one more.
    assert {40, best} <= set(kept) and len(kept) <= 3
    # What was written is what the look saw, and not the last step's.
    written = held_out_loss(run.model, dataset)
    assert written == pytest.approx(found["held_out_loss"], rel=1e-5)
    assert abs(written - last) > 1e-3

    before, after = (load_file(each.path / "model.safetensors") for each in (base, run.model))
    adapter = load_file(run.model.path / ADAPTER / "adapter_model.safetensors")
    assert len(adapter) == 2 * 7 * 2, "two matrices for each of seven layers, twice"
    for name, weight in before.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        added = 0.0
        if f"{prefix}A.weight" in adapter:
            added = 16 / 8 * adapter[f"{prefix}B.weight"] @ adapter[f"{prefix}A.weight"]
            assert added.abs().max() > 0
        assert (after[name] - (weight + added)).abs().max() < 1e-5, name


def held_out_loss(model: Artifact, dataset: Artifact) -> float:
    """Of the model as it was written, on the rows that a validation looks at."""
    import torch

    from raylm.model.build import build_model
    from raylm.train.objectives.objective import objective_for

    split = PackedSplit.open(dataset.path, "held_out")
    source = Source(split, 0, "causal", SpecialTokens.of(dataset.path / "tokenizer"))
    written = build_model(
        ModelConfig(path=str(model.path)),
        seq_len=split.seq_len, vocab_size=split.vocab_size, special_ids={},
    )  # fmt: skip
    rows = held_out_rows(split)
    with torch.no_grad():
        nll = objective_for("causal").loss(
            written.eval(), source.in_order(rows), mask_documents=True, whole_head=True
        )
    return float(nll) / source.num_targets_in_order(rows)
