"""The check at start-up finds what leaks, on either side, and passes what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raylm.train.objectives.causal as causal
import raylm.train.objectives.encoder as encoder
import raylm.train.objectives.seq2seq as seq2seq
from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.data.shards import NO_TARGET, Batch
from raylm.errors import TrainError
from raylm.model import document_attention
from raylm.model.document_attention import spans_for, use_document_attention
from raylm.model.spans import Span
from raylm.train.leak import _rows, attention_path, check_no_leak
from raylm.train.loop import Job, run_rank
from raylm.train.metrics import MetricsTail
from raylm.train.objectives.masks import document_mask
from raylm.train.objectives.objective import objective_for
from raylm.train.signs import begin_attempt
from tests.train.alone import group_of_one
from tests.train.packing import draw, pack, pack_pairs, tiny
from tests.train.records import write_dataset
from tests.train.series import SMALL


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


def whole_rows(model: Any, segment_ids: np.ndarray, *, apart: bool) -> list[Span] | None:
    """As `spans_for`, and every row is one document."""
    found = spans_for(model, segment_ids, apart=apart)
    return None if found is None else spans_for(model, segment_ids, apart=False)


def test_a_row_is_tried_on_the_path_that_its_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Alone, the second row has so many documents that a mask is faster.
    batch = pack([draw(144), draw(20, 20, 20, 84, seed=3)], 144)
    model = tiny("llama")
    use_document_attention(model)
    assert attention_path(model, batch) == "spans"
    assert attention_path(model, _rows(batch, [1])) == "mask"
    assert check_no_leak(model, batch, objective_for("causal"))
    monkeypatch.setattr(causal, "spans_for", whole_rows)
    with pytest.raises(TrainError, match="lets documents of one row see each other"):
        check_no_leak(model, batch, objective_for("causal"))


@pytest.mark.parametrize(("short", "path"), [(48, "mask"), (1, "spans")])
def test_a_training_that_leaks_does_not_begin(
    short: int, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the entry of every rank: without the check there, this one would train."""
    monkeypatch.setattr(document_attention, "_SHORT", short)
    if path == "spans":
        monkeypatch.setattr(causal, "spans_for", whole_rows)
    else:
        alike = lambda segments: document_mask(np.ones_like(segments))  # noqa: E731
        monkeypatch.setattr(causal, "document_mask", alike)
    work = tmp_path / "work"
    work.mkdir()
    data = write_dataset(tmp_path / "data", "text")
    config = TrainConfig(steps=1, global_batch=4, micro_batch=2, workers=1, hang_s=0)
    job = Job(
        ModelConfig(preset="llama-1m", **SMALL), config, data, work, 0, "c", resume=False,
        result=tmp_path / "model", attempt=begin_attempt(work),
    )  # fmt: skip
    with group_of_one():
        with pytest.raises(TrainError) as caught:
            run_rank(job, rank=0, world_size=1, local_workers=1)
        assert caught.value.code == "train-leak"
        monkeypatch.undo()
        run_rank(job, rank=0, world_size=1, local_workers=1)
    assert (tmp_path / "model" / "config.json").exists()
    assert not (work / "notices.jsonl").exists()


def test_what_cannot_be_tried_is_told(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", "text", packed=False)
    config = TrainConfig(steps=1, global_batch=4, micro_batch=2, workers=1)
    job = Job(
        ModelConfig(preset="llama-1m", **SMALL), config, data, tmp_path, 0, "c", resume=False,
        result=tmp_path / "model", attempt=begin_attempt(tmp_path),
    )  # fmt: skip
    with group_of_one():
        run_rank(job, rank=0, world_size=1, local_workers=1)
    (told,) = [line["text"] for line in MetricsTail(tmp_path / "notices.jsonl").new()]
    assert told.endswith("(by mask) is not tried: no row of the next step has two with a target")


def test_rows_of_one_document_cannot_be_tried() -> None:
    batch = pack([draw(14), draw(12)], 16)
    assert not check_no_leak(tiny("llama"), batch, objective_for("causal"))
