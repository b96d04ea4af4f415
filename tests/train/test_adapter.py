"""The adapter beside the model: PEFT's format, and with its base the merged model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raylm.config.train import LoraConfig
from raylm.train.adapter import target_names, write_adapter
from raylm.train.lora import add_adapters, merged_state
from tests.train.packing import tiny
from tests.train.test_lora import inputs

CONFIG = LoraConfig(rank=4, alpha=12)


def trained(kind: str, **head: Any) -> Any:
    model = tiny(kind, **head)
    for name in add_adapters(model, CONFIG):
        torch.nn.init.normal_(model.get_submodule(name).lora_b, std=0.1)
    return model


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_base_and_adapter_are_the_merged_weights(kind: str, tmp_path: Path) -> None:
    model, base = trained(kind), tiny(kind).state_dict()
    write_adapter(model, CONFIG, "base-0123", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 12.0)
    assert config["base_model_name_or_path"] == "base-0123"
    merged = merged_state(model)
    scale, layers = 12.0 / 4, {name.rpartition(".lora_")[0] for name in found}
    for name, weight in merged.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        added = torch.zeros(())
        if layer in layers:
            added = scale * found[f"{layer}.lora_B.weight"] @ found[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(base[name] + added, weight, rtol=0, atol=1e-6)
    assert len(found) == 2 * len(layers) > 0


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("kind", ["llama", "t5", "bert", "classifier"])
def test_peft_loads_it_and_says_what_the_merged_model_says(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    head = {"head": "classes", "labels": ["a", "b"]} if kind == "classifier" else {}
    kind = "bert" if kind == "classifier" else kind
    model, base, plain = trained(kind, **head), tiny(kind, **head), tiny(kind, **head)
    if head:
        torch.nn.init.normal_(model.classifier.weight, std=0.1)
        torch.nn.init.normal_(model.bert.pooler.dense.weight, std=0.1)
    write_adapter(model, CONFIG, "base", tmp_path)
    plain.load_state_dict(merged_state(model))
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        theirs, ours = loaded(**inputs(kind)).logits, plain(**inputs(kind)).logits
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    weights = loaded.merge_and_unload().state_dict()
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6)


def test_targets_are_short_where_that_means_no_other_layer() -> None:
    linear = ["a.q", "a.v", "b.q", "b.v", "lm_head"]
    assert target_names(["a.q", "b.q"], linear) == ["q"]
    assert target_names(["a.q", "a.v"], linear) == ["a.q", "a.v"]


def test_a_classifiers_head_is_saved_whole(tmp_path: Path) -> None:
    model = trained("bert", head="classes", labels=["a", "b"])
    write_adapter(model, CONFIG, "base", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    assert config["task_type"] == "SEQ_CLS"
    found = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(found["base_model.model.classifier.weight"], model.classifier.weight)
