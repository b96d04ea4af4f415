"""From text to an int8 folder that plain transformers and raylm's engine read alike."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from raylm.config import Loaded
from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.engine.protocol import Request, Sampling
from raylm.errors import GateError
from raylm.pipeline import run
from raylm.record import RunResult
from raylm.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

NUM_PROMPTS, NEW_TOKENS = 24, 32


def test_every_stage_has_a_result_with_its_lineage(finished: RunResult, store: Store) -> None:
    refs = {s.stage: store.resolve(s.ref) for s in finished.stages if s.ref}
    assert list(refs) == ["data", "train", "evaluate", "compress"]
    dataset, model = refs["data"], refs["train"]
    assert model.manifest.parents == (dataset.digest,)
    assert refs["compress"].manifest.parents == (model.digest, dataset.digest)
    assert refs["compress"].manifest.name == "tiny-int8"


def test_the_figures_belong_together(finished: RunResult) -> None:
    evaluation = finished.of("evaluate")
    compression = finished.of("compress")
    assert evaluation is not None
    assert compression is not None
    metrics = evaluation.metrics
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]))
    assert 1 < metrics["bits_per_byte"] < 8
    assert compression.metrics["kl"] < 1e-3
    assert compression.metrics["top1_agreement"] > 0.95
    assert compression.metrics["weight_bytes"] < 0.5 * compression.metrics["reference_weight_bytes"]
    assert compression.metrics["tokens_per_s"] > 0


def test_plain_transformers_and_the_engine_give_the_same_greedy_text(
    finished: RunResult, store: Store
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    compressed = finished.of("compress")
    assert compressed is not None
    artifact = store.resolve(str(compressed.ref))
    model = AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    text = Path(json.__file__).read_text()
    prompts = [
        tokenizer(text[i * 97 : i * 97 + 20 + 5 * i])["input_ids"] for i in range(NUM_PROMPTS)
    ]
    config = EngineConfig(kind="openvino", precision="f32", kv_cache="f32")
    engine = load(artifact.path, config, cache_root=store.root / "engine", digest=artifact.digest)
    try:
        found = asyncio.run(_greedy(engine, prompts))
    finally:
        engine.close()
    ties = 0
    for prompt, tokens in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        chosen = logits[range(len(tokens)), tokens]
        gap = (logits.amax(-1) - chosen).max()
        # Equal at every step, or so close that the order of additions decides.
        assert gap < 1e-3
        ties += bool(gap > 0)
    assert ties <= 2


async def _greedy(engine: object, prompts: list[list[int]]) -> list[list[int]]:
    async def one(index: int) -> list[int]:
        sampling = Sampling(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
        tokens: list[int] = []
        async for chunk in engine.generate(  # type: ignore[attr-defined]
            Request(str(index), tuple(prompts[index]), sampling)
        ):
            tokens += chunk.token_ids
        return tokens

    return list(await asyncio.gather(*(one(i) for i in range(len(prompts)))))


def test_a_gate_that_is_not_met_registers_nothing(
    finished: RunResult, store: Store, loaded: Loaded
) -> None:
    gate = loaded.config.compress.gate.model_copy(update={"max_kl": 0.0})
    compress = loaded.config.compress.model_copy(update={"gate": gate, "measure_speed": False})
    strict = type(loaded)(
        loaded.config.model_copy(update={"compress": compress}), loaded.origins, loaded.base_dir
    )
    before = store.list("model")
    with pytest.raises(GateError) as caught:
        run(strict, store=store)
    assert "max_kl=0" in caught.value.message
    assert store.list("model") == before
    assert list((store.root / "drafts").iterdir()) == []


def test_the_report_has_the_curve_and_the_comparison(finished: RunResult) -> None:
    assert finished.report is not None
    page = finished.report.read_text()
    assert "<polyline" in page.split("</svg>")[0]
    assert "Compressed beside original" in page
    assert "top1 agreement" in page
