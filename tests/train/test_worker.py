"""One worker, without Ray: every objective learns, the same under ZeRO 0 and 3, packed or not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
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
from raylm.evaluate import compare, evaluate
from raylm.train.loop import Job
from tests.data.test_pack_records import write

pytestmark = pytest.mark.timeout(900)

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


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
            patch.setenv(name, value)
        patch.setenv("DS_ACCELERATOR", "cpu")
        place = tmp_path_factory.mktemp("group") / "store"
        torch.distributed.init_process_group("gloo", f"file://{place}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


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
