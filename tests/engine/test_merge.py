"""Merged adapters: the weights that PEFT and torch compute, and refusals by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from raylm.engine.adapter import check_base_name, read_adapter, read_adapter_config
from raylm.engine.merge import main, merge, round_bfloat16
from raylm.engine.weights import open_checkpoint
from raylm.errors import ModelError
from raylm.model.build import model_of_shape, save_model
from raylm.model.shapes import EncoderDecoderShape
from tests.engine.adapters import write_adapter
from tests.serve.conftest import make_tokenizer, write_llama, write_model_files

Q, V, DOWN = (f"model.layers.0.{name}" for name in (
    "self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj",
))  # fmt: skip
SHAPES = {Q: (64, 64), V: (32, 64), DOWN: (64, 128)}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    shape = EncoderDecoderShape(32, 48, 2, 2, 2, 16)
    model = model_of_shape(shape, make_tokenizer().get_vocab_size(), {"eos": 2}, head="seq2seq")
    tokenizer = write_model_files(tmp_path_factory.mktemp("t"), template=None)
    folder = tmp_path_factory.mktemp("base") / "t5"
    folder.mkdir()
    model.config.architectures = [type(model).__name__]
    save_model(model.config, model.state_dict(), tokenizer, folder)
    return folder


def merged(base: Path, adapter: Path, out: Path) -> Path:
    out.mkdir()
    merge(base, adapter, out)
    return out


def logits(folder: Path, auto: str, **inputs: Any) -> torch.Tensor:
    import transformers

    model = getattr(transformers, auto).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**inputs).logits


IDS = torch.tensor([[5, 9, 200, 31, 7]])


def with_branches(base: Path, adapter: Path, auto: str, scale: float, **inputs: Any) -> Any:
    """Logits of the base with B(A(x)) * scale added to each layer's output as it runs."""
    import transformers

    model = getattr(transformers, auto).from_pretrained(base).eval()
    parts = load_file(adapter / "adapter_model.safetensors")
    for name in sorted(n for n in parts if n.endswith(".lora_A.weight")):
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a, b = parts[name], parts[name.replace("lora_A", "lora_B")]

        def add(_: Any, given: Any, out: Any, a: Any = a, b: Any = b) -> Any:
            return out + scale * (given[0] @ a.T) @ b.T

        model.get_submodule(layer).register_forward_hook(add)
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(
    ("changes", "scale"), [({}, 2.0), ({"use_rslora": True}, 4.0), ({"lora_alpha": 1}, 0.25)]
)
def test_a_merged_llama_computes_what_the_adapter_adds(llama, tmp_path, changes, scale):
    adapter = write_adapter(tmp_path / "adapter", SHAPES, **changes)
    out = merged(llama, adapter, tmp_path / "out")
    found = logits(out, "AutoModelForCausalLM", input_ids=IDS)
    expected = with_branches(llama, adapter, "AutoModelForCausalLM", scale, input_ids=IDS)
    base = logits(llama, "AutoModelForCausalLM", input_ids=IDS)
    assert (found - expected).abs().max() < 1e-3
    assert (found - base).abs().max() > 0.5  # the adapter says something


def test_a_merged_t5_computes_what_the_adapter_adds(t5, tmp_path):
    shapes = {
        "encoder.block.0.layer.0.SelfAttention.q": (32, 32),
        "decoder.block.1.layer.1.EncDecAttention.v": (32, 32),
    }
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS}
    adapter = write_adapter(tmp_path / "adapter", shapes, task_type="SEQ_2_SEQ_LM")
    out = merged(t5, adapter, tmp_path / "out")
    found = logits(out, "AutoModelForSeq2SeqLM", **inputs)
    expected = with_branches(t5, adapter, "AutoModelForSeq2SeqLM", 2.0, **inputs)
    assert (found - expected).abs().max() < 1e-4
    assert (found - logits(t5, "AutoModelForSeq2SeqLM", **inputs)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True, "r": 6}),
        ("llama", {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 3}}),
        ("t5", {"target_modules": ["q", "wi_0"]}),
        ("t5", {"target_modules": ["EncDecAttention.v"], "lora_alpha": 5}),
    ],
)
def test_peft_merges_to_the_same_weights(request, tmp_path, architecture, changes):
    peft = pytest.importorskip("peft")
    import transformers

    base = request.getfixturevalue(architecture)
    auto = "AutoModelForCausalLM" if architecture == "llama" else "AutoModelForSeq2SeqLM"
    torch.manual_seed(3)
    model = getattr(transformers, auto).from_pretrained(base)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | changes
    # Not started as zeros, so that there is something to add.
    wrapped = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **settings))
    wrapped.save_pretrained(tmp_path / "adapter")
    check_base_name(tmp_path / "adapter", [base.name], None)
    out = merged(base, tmp_path / "adapter", tmp_path / "out")
    expected = wrapped.merge_and_unload().state_dict()
    changed = 0
    before = load_file(base / "model.safetensors")
    for name, found in load_file(out / "model.safetensors").items():
        assert torch.allclose(found, expected[name], atol=1e-6, rtol=0), name
        changed += not torch.equal(found, before[name])
    assert changed >= 2


def test_everything_else_is_as_it_was(llama, tmp_path):
    out = merged(llama, write_adapter(tmp_path / "a", {Q: (64, 64)}), tmp_path / "out")
    before, after = open_checkpoint(llama), open_checkpoint(out)
    assert before.names() == after.names()
    for name in before.names():
        same = np.array_equal(before[name].data, after[name].data)
        assert same == (name != f"{Q}.weight")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / file).read_bytes() == (llama / file).read_bytes()


def test_adapters_that_a_model_was_made_with_stay_with_it(llama, tmp_path):
    model = shutil.copytree(llama, tmp_path / "model")
    write_adapter(model / "adapter", {Q: (64, 64)})
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text("{}")
    out = merged(model, write_adapter(tmp_path / "a", {Q: (64, 64)}), tmp_path / "out")
    assert not (out / "adapter").exists()
    assert (out / "1_Pooling/config.json").read_text() == "{}"


def test_shards_and_types_stay_and_sums_are_rounded_once(llama, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in llama.glob("*.json"):
        (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(llama / "model.safetensors")
    halves = {n: t.to(torch.bfloat16 if "proj" in n else torch.float16) for n, t in tensors.items()}
    names = sorted(halves)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({n: halves[n] for n in part}, base / file)
    index = {"weight_map": {n: f for f, part in shards.items() for n in part}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    adapter = write_adapter(tmp_path / "a", SHAPES)
    out = merged(base, adapter, tmp_path / "out")
    added = read_adapter(adapter, "llama").layers
    for file, part in shards.items():
        found = load_file(out / file)
        assert set(found) == set(part)
        for name in part:
            expected = halves[name]
            if name.removesuffix(".weight") in added:
                delta = torch.from_numpy(added[name.removesuffix(".weight")].delta())
                expected = (expected.float() + delta).to(expected.dtype)
            assert found[name].dtype == expected.dtype
            assert torch.equal(found[name], expected), name


def test_bfloat16_is_rounded_as_torch_rounds():
    values = np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32)
    values[:3] = (1 + 2**-8, 1 + 3 * 2**-8, -0.0)  # halfway between two
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(round_bfloat16(values).view(np.int16), expected)


def test_gpt2_has_its_weights_the_other_way_round(tmp_path):
    base = tmp_path / "base"
    write_model_files(base)
    weight = np.random.default_rng(0).normal(0, 1, (8, 24)).astype(np.float32)
    save_file({"transformer.c_attn.weight": torch.from_numpy(weight)}, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    adapter = write_adapter(tmp_path / "a", {"transformer.c_attn": (24, 8)}, fan_in_fan_out=True)
    out = merged(base, adapter, tmp_path / "out")
    parts = load_file(adapter / "adapter_model.safetensors")
    a, b = (parts[f"base_model.model.transformer.c_attn.lora_{x}.weight"] for x in "AB")
    expected = torch.from_numpy(weight) + 2 * (b @ a).T
    found = load_file(out / "model.safetensors")["transformer.c_attn.weight"]
    assert torch.allclose(found, expected, atol=1e-6)
    write_adapter(tmp_path / "a", {"transformer.c_attn": (8, 24)})
    with pytest.raises(ModelError, match="fan_in_fan_out is False, which does not go with"):
        merged(base, adapter, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora=true"),
        ({"bias": "all"}, 'bias="all"'),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights="pissa"'),
        ({"peft_type": "IA3"}, 'peft_type="IA3"'),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"of_a_later_version": {"x": 1}}, "of_a_later_version"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True, which does not go with .*'llama'"),
        ({"r": 5}, "rank 4, and adapter_config.json says 5"),
        ({"rank_pattern": {"q_(proj": 4}}, "rank_pattern has 'q_.proj', which is no expression"),
        ({"lora_alpha": 0}, "lora_alpha of .*q_proj is 0"),
        ({"lora_alpha": "8"}, "lora_alpha of .*q_proj is '8'"),
        ({"target_modules": ["k_proj"]}, "q_proj has an adapter, and is none of target_modules"),
        ({"target_modules": ["q_proj", "k_proj"]}, "names 'k_proj', and no layer of that name"),
    ],
)
def test_what_would_be_left_out_is_refused_by_name(llama, tmp_path, changes, said):
    adapter = write_adapter(tmp_path / "a", {Q: (64, 64)})
    settings = json.loads((adapter / "adapter_config.json").read_text()) | changes
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=said):
        merged(llama, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({Q: (64, 32)}, r"shape \[64, 32\], and that of .* has \[64, 64\]"),
        ({"model.layers.7.self_attn.q_proj": (64, 64)}, "has no model.layers.7.self_attn.q_proj"),
    ],
)
def test_an_adapter_of_another_shape_does_not_fit(llama, tmp_path, shapes, said):
    with pytest.raises(ModelError, match=said) as caught:
        merged(llama, write_adapter(tmp_path / "a", shapes), tmp_path / "out")
    assert caught.value.code == "adapter-misfit"


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ({"q_proj.lora_A": "q_proj.lora_embedding_A"}, "lora_embedding_A"),
        ({"q_proj.lora_A.weight": "q_proj.lora_magnitude_vector"}, "lora_magnitude_vector"),
        ({"q_proj.lora_B": "v_proj.lora_B"}, "q_proj has only lora_A"),
    ],
)
def test_tensors_that_are_no_plain_adapter_are_named(llama, tmp_path, rename, said):
    adapter = write_adapter(tmp_path / "a", {Q: (64, 64)}, target_modules="all-linear")
    tensors = load_file(adapter / "adapter_model.safetensors")
    ((old, new),) = rename.items()
    save_file(
        {name.replace(old, new): tensor for name, tensor in tensors.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match=said):
        merged(llama, adapter, tmp_path / "out")


def test_pickles_missing_files_and_quantized_models_are_refused(llama, tmp_path):
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        read_adapter_config(tmp_path)
    adapter = write_adapter(tmp_path / "a", {Q: (64, 64)})
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="only a pickle") as caught:
        read_adapter(adapter, "llama")
    assert caught.value.code == "pickled-weights"
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    settings = json.loads((llama / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "compressed-tensors"}
    (quantized / "config.json").write_text(json.dumps(settings))
    (quantized / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="is quantized: an adapter cannot be merged"):
        merged(quantized, adapter, tmp_path / "out")


def test_a_sum_that_is_not_finite_is_refused(llama, tmp_path):
    adapter = write_adapter(tmp_path / "a", {Q: (64, 64)})
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"q_proj\.weight is not finite"):
        merged(llama, adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("said", "trained_on", "fits"),
    [
        (None, None, True),
        ("", None, True),
        ("meta-llama/Llama-3", None, True),
        ("/home/me/llama-3/", None, True),
        ("meta-llama/Llama-3-Instruct", None, False),
        ("meta-llama/Llama-3-Instruct", "meta-llama/Llama-3-Instruct", True),
        ("meta-llama/Llama-3-Instruct", "something-else", False),
    ],
)
def test_the_base_that_an_adapter_names_must_be_the_one(tmp_path, said, trained_on, fits):
    adapter = write_adapter(tmp_path, {Q: (64, 64)}, base_model_name_or_path=said)
    if fits:
        check_base_name(adapter, ["llama-3"], trained_on)
        return
    with pytest.raises(ModelError, match="was trained on 'meta-llama/Llama-3-Instruct'") as caught:
        check_base_name(adapter, ["llama-3"], trained_on)
    assert caught.value.code == "adapter-of-another-model"
    assert "trained_on: meta-llama/Llama-3-Instruct" in str(caught.value.hint)


def test_the_process_tells_its_reason_in_one_line(llama, tmp_path, capsys):
    adapter = write_adapter(tmp_path / "a", {Q: (64, 32)})
    (tmp_path / "out").mkdir()
    assert main([str(llama), str(adapter), str(tmp_path / "out")]) == 1
    assert json.loads(capsys.readouterr().err)["code"] == "adapter-misfit"
    assert main([]) == 2
