"""One worker, without Ray: every objective learns, the same under ZeRO 0 and 3, packed or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from raylm.config.data import Format
from raylm.config.model import ModelConfig
from raylm.config.train import ObjectiveName, TrainConfig
from raylm.data.shards import PackedSplit
from raylm.errors import ArtifactError
from raylm.evaluate import compare, evaluate
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.loop import Job
from raylm.train.metrics import METRICS, read_metrics
from tests.data.test_pack_records import write

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("alone")]

STEPS = 6
CASES: dict[str, tuple[Format, dict[str, Any], str, str]] = {
    "causal": ("chat", {"objective": "causal"}, "llama-1m", "AutoModelForCausalLM"),
    "sft": ("chat", {}, "llama-1m", "AutoModelForCausalLM"),
    "seq2seq": ("pairs", {}, "t5-1m", "AutoModelForSeq2SeqLM"),
    "mlm": ("text", {}, "bert-1m", "AutoModelForMaskedLM"),
    "classify": ("labels", {}, "bert-1m", "AutoModelForSequenceClassification"),
    "dpo": ("preferences", {"dpo_beta": 0.5}, "llama-1m", "AutoModelForCausalLM"),
}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}


def dataset(root: Path, format: Format) -> Path:
    """8 records of 4 tokens in rows of 8, token r * 100 + place of record r."""
    more: dict[str, Any] = {}
    if format in ("chat", "preferences"):
        more["spans"] = [[(1, 2)] for _ in range(8)]
    if format == "preferences":
        more["spans"], more["first"] = [[(0, 1), (2, 1)] for _ in range(8)], [2] * 8
    if format == "pairs":
        more["source"] = [3] * 8
    if format == "labels":
        more["label"] = [n % 3 for n in range(8)]
    write(root, "labels" if format == "text" else format, [4] * 8, **more)
    shutil.copytree(root / "train", root / "held_out")
    index = json.loads((root / "index.json").read_text())
    index["splits"]["held_out"] = index["splits"]["train"]
    if format == "text":
        index["format"] = "text"
    (root / "index.json").write_text(json.dumps(index))
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    tokens = [{"id": n, "content": f"<{n}>", "special": True} for n in (9000, 9001, 9002)]
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    roles = {"eos_token": "<9000>", "pad_token": "<9001>", "mask_token": "<9002>"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(roles))
    return root


def train(
    name: str, data: Path, work: Path, model: ModelConfig | None = None, **changes: Any
) -> tuple[list[float], float]:
    from raylm.train.worker import Worker

    _, options, preset, _ = CASES[name]
    config = TrainConfig(
        steps=STEPS, global_batch=4, micro_batch=2, workers=1,
        optimizer={"lr": 0.01, "weight_decay": 0.0}, schedule={"kind": "constant", "warmup": 0},
        **{**options, **changes},
    )  # fmt: skip
    objective: ObjectiveName = name  # type: ignore[assignment]
    work.mkdir()
    job = Job(
        model or ModelConfig(preset=preset, **SMALL), config, data, work, 0, "c",
        resume=False, result=work / "model", objective=objective,
    )  # fmt: skip
    worker = Worker(job, rank=0, world_size=1)
    worker.restore()
    losses = [worker.step().loss for _ in range(STEPS)]
    held_out = worker.validate()
    worker.write_model()
    worker.close()
    return losses, held_out


@pytest.mark.parametrize("name", CASES)
def test_every_objective_learns_and_its_model_is_loaded(name: str, tmp_path: Path) -> None:
    format, _, _, auto = CASES[name]
    data = dataset(tmp_path / "data", format)
    losses, held_out = train(name, data, tmp_path / "zero0", zero=0)
    sharded, held_out_3 = train(name, data, tmp_path / "zero3", zero=3)
    np.testing.assert_allclose(sharded, losses, rtol=2e-4)
    assert held_out_3 == pytest.approx(held_out, rel=2e-3)
    # The first loss is that of a model which knows nothing; it falls.
    knows_nothing = {"classify": np.log(3), "dpo": np.log(2)}.get(name, np.log(10_000))
    assert losses[0] == pytest.approx(knows_nothing, rel=0.1)
    assert min(losses[-2:]) < 0.97 * losses[0]
    split = PackedSplit.open(data, "train")
    loaded = getattr(transformers, auto).from_pretrained(tmp_path / "zero3" / "model")
    assert loaded.config.vocab_size == split.vocab_size
    rows = evaluate.score((tmp_path / "zero0" / "model",), data, np.arange(split.num_samples))
    if name == "dpo":
        assert rows[:, 4].sum() == 8
        assert rows[:, 5].sum() == 8
    else:
        assert rows[:, 0].sum() / rows[:, 1].sum() == pytest.approx(held_out, rel=1e-4)
    folders = tmp_path / "zero0" / "model", tmp_path / "zero3" / "model"
    differences = compare.score(folders, data, np.arange(split.num_samples))
    assert differences[:, 1].sum() / differences[:, 0].sum() < 1e-3


def test_adapters_alone_learn_and_the_written_model_is_plain(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", "preferences")
    train("dpo", data, tmp_path / "first", zero=0)
    folder = tmp_path / "first" / "model"
    config = ModelConfig(path=str(folder))
    lora = {"rank": 4, "alpha": 8.0, "targets": ("q_proj", "v_proj")}
    found = {
        zero: train("dpo", data, tmp_path / f"lora{zero}", config, lora=lora, zero=zero)
        for zero in (0, 2, 3)
    }
    losses = found[0][0]
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5)
    assert losses[-1] < 0.99 * losses[0]
    for zero in (2, 3):
        np.testing.assert_allclose(found[zero][0], losses, rtol=2e-4)
    before = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    written = tmp_path / "lora3" / "model"
    after = transformers.AutoModelForCausalLM.from_pretrained(written).state_dict()
    assert after.keys() == before.keys()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key.rpartition("self_attn.")[2] for key in changed} == {
        "q_proj.weight", "v_proj.weight",
    }  # fmt: skip
    assert len(changed) == 4


def test_a_steps_line_tells_speed_memory_and_time_left_and_a_resume_is_marked(
    tmp_path: Path,
) -> None:
    from raylm.train.flops import flops_of
    from raylm.train.worker import Worker

    data, model = dataset(tmp_path / "data", "chat"), ModelConfig(preset="llama-1m", **SMALL)
    config = TrainConfig(steps=6, global_batch=4, micro_batch=2, workers=1, zero=2)
    split = PackedSplit.open(data, "train")
    flops = flops_of(model, config, "causal", seq_len=split.seq_len, vocab_size=split.vocab_size)
    job = Job(model, config, data, tmp_path / "work", 0, "c", resume=True,
              result=tmp_path / "model", flops=flops)  # fmt: skip
    job.work.mkdir()

    def steps(worker: Worker, count: int) -> None:
        worker.restore()
        worker.find_peak()
        for _ in range(count):
            figures = worker.step()
            worker.clock(0.5, figures)
            assert worker.judge(figures)
            worker.log(figures)

    first = Worker(job, rank=0, world_size=1)
    steps(first, 3)
    first.save()
    first.close()
    second = Worker(job, rank=0, world_size=1)
    steps(second, 3)
    second.close()
    lines = list(read_metrics(job.work / METRICS))
    assert [(x["step"], x["event"], x["workers"]) for x in lines if "event" in x] == [
        (0, "start", 1), (3, "resume", 1),
    ]  # fmt: skip
    told = [line for line in lines if "loss" in line]
    assert [line["step"] for line in told] == [1, 2, 3, 4, 5, 6]
    tokens = 4 * split.seq_len
    for line in told:
        # Of each attempt's steps, and over all of them: half a second each.
        assert line["recent_tokens_per_s"] == pytest.approx(tokens / 0.5, rel=1e-3)
        assert line["tokens_per_s"] == pytest.approx(tokens / 0.5, rel=1e-3)
        assert 0 < line["mfu"] < 1
        assert 0 < line["data_wait_s"] < 60
        assert 10**8 < line["memory_bytes"] <= line["memory_peak_bytes"] * 1.01
        # One rank is the fullest.
        assert line["max_memory_peak_bytes"] == line["memory_peak_bytes"]
    assert told[0]["left_s"] is None
    assert told[3]["left_s"] is None, "of a first step nothing follows"
    assert [told[5]["left_s"]] == [0.0]
    assert told[4]["left_s"] == pytest.approx(0.5, rel=1e-3)


ASIDE_CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "whole weights": ("causal", {"zero": 0}, 1e-6),
    "sharded optimizer": ("seq2seq", {"zero": 2}, 1e-6),
    "sharded weights": ("mlm", {"zero": 3}, 1e-6),
    "a model at the start": ("dpo", {"zero": 2}, 1e-6),
    "adapters": ("causal", {"zero": 3, "lora": {"rank": 4}}, 1e-6),
    "bf16": ("causal", {"zero": 2, "precision": "bf16"}, 1e-3),
}


@pytest.mark.parametrize("case", ASIDE_CASES)
def test_a_checkpoint_looked_at_aside_has_the_held_out_loss_of_the_loop(
    case: str, tmp_path: Path
) -> None:
    from raylm.train.held_out import validate_checkpoint
    from raylm.train.worker import Worker

    name, changes, tolerance = ASIDE_CASES[case]
    format, options, preset, _ = CASES[name]
    data = dataset(tmp_path / "data", format)
    config = TrainConfig(
        steps=9, global_batch=4, micro_batch=2, workers=1, optimizer={"lr": 0.01},
        schedule={"kind": "constant", "warmup": 0}, **{**options, **changes},
    )  # fmt: skip
    model = ModelConfig(preset=preset, **SMALL)
    if "lora" in changes:
        train(name, data, tmp_path / "first", model, zero=0)
        model = ModelConfig(path=str(tmp_path / "first" / "model"))
    objective: ObjectiveName = name  # type: ignore[assignment]
    job = Job(model, config, data, tmp_path / "work", 0, "c", resume=False,
              result=tmp_path / "model", objective=objective)  # fmt: skip
    job.work.mkdir()
    worker = Worker(job, rank=0, world_size=1)
    worker.restore()
    before = worker.validate()
    for _ in range(3):
        worker.step()
    loss = worker.validate()
    worker.save()
    worker.close()
    (checkpoint,) = complete_checkpoints(job.work / "checkpoints")
    found = validate_checkpoint(job, checkpoint)
    assert found.step == 3
    assert abs(loss - before) > 100 * tolerance * abs(loss), "it learned nothing to compare"
    assert found.held_out_loss == pytest.approx(loss, rel=tolerance)
    (checkpoint.state / "rng-0.npy").write_bytes(b"altered")
    with pytest.raises(ArtifactError, match=r"rng-0.npy has 7 of "):
        validate_checkpoint(job, checkpoint)
