"""Adapters: nothing at first, applied as they are merged, and they alone learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from raylm.config.train import LoraConfig
from raylm.errors import ConfigError
from raylm.model.build import save_model
from raylm.train.lora import adapters_off, add_adapters, has_adapters, merged_state
from tests.train.packing import draw, tiny

IDS = torch.tensor(draw(9))


def inputs(kind: str) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS} if kind == "t5" else {})


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_merged_weights_give_what_the_applied_adapters_give(kind: str) -> None:
    model, plain = tiny(kind), tiny(kind)
    names = add_adapters(model, LoraConfig(rank=4, alpha=8))
    with torch.no_grad():
        before = plain(**inputs(kind)).logits
        assert torch.equal(model(**inputs(kind)).logits, before)
        for name in names:
            torch.nn.init.normal_(model.get_submodule(name).lora_b, std=0.1)
        applied = model(**inputs(kind)).logits
        with adapters_off(model):
            assert torch.equal(model(**inputs(kind)).logits, before)
        missing = plain.load_state_dict(merged_state(model), strict=True)
        assert not missing.missing_keys
        torch.testing.assert_close(plain(**inputs(kind)).logits, applied, rtol=1e-4, atol=1e-4)
    assert (applied - before).abs().max() > 0.01
    assert has_adapters(model)
    assert not has_adapters(plain)


@pytest.mark.parametrize(
    ("kind", "auto"),
    [("llama", "AutoModelForCausalLM"), ("t5", "AutoModelForSeq2SeqLM"),
     ("bert", "AutoModelForMaskedLM")],
)  # fmt: skip
def test_the_written_folder_says_what_the_applied_adapters_said(
    kind: str, auto: str, tmp_path: Path
) -> None:
    model = tiny(kind)
    for name in add_adapters(model, LoraConfig(rank=4, alpha=8)):
        torch.nn.init.normal_(model.get_submodule(name).lora_b, std=0.1)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
    (tmp_path / "model").mkdir()
    model.config.architectures = [type(model).__name__]
    save_model(model.config, merged_state(model), tmp_path / "tokenizer", tmp_path / "model")
    loaded = getattr(transformers, auto).from_pretrained(tmp_path / "model").eval()
    assert type(loaded) is type(model)
    assert not [name for name in loaded.state_dict() if "lora" in name]
    with torch.no_grad():
        applied, merged = model(**inputs(kind)).logits, loaded(**inputs(kind)).logits
    torch.testing.assert_close(merged, applied, rtol=1e-4, atol=1e-4)


def test_only_adapters_learn_and_the_head_has_none() -> None:
    model = tiny("llama")
    names = add_adapters(model, LoraConfig(rank=2))
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learned == {f"{name}.{part}" for name in names for part in ("lora_a", "lora_b")}


def test_a_classifiers_head_learns_whole() -> None:
    model = tiny("bert", head="classes", labels=["a", "b"])
    add_adapters(model, LoraConfig(targets=("query", "value")))
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    head = {n for n in learned if "lora" not in n}
    assert head == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight",
        "classifier.bias",
    }  # fmt: skip
    assert len(learned - head) == 2 * 2 * 2


@pytest.mark.parametrize("target", ["q_prj", "lm_head", "proj"])
def test_a_target_that_is_none_is_refused_by_name(target: str) -> None:
    with pytest.raises(ConfigError, match=f"ends with '{target}'") as caught:
        add_adapters(tiny("llama"), LoraConfig(targets=("q_proj", target)))
    assert "q_proj" in (caught.value.hint or "")


def test_dropout_is_for_training_alone() -> None:
    model = tiny("llama")
    for name in add_adapters(model, LoraConfig(dropout=0.5)):
        torch.nn.init.normal_(model.get_submodule(name).lora_b, std=0.1)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
        model.train()
        assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
