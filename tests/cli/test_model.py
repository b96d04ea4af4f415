import json
from pathlib import Path

import pytest

from raylm.model.presets import PRESETS


@pytest.mark.parametrize("preset", ["llama-3m", "t5-10m", "bert-10m"])
def test_show_counts_a_preset(raylm, preset: str) -> None:
    shown = raylm("model", "show", preset, "-o", "json").json
    count = PRESETS[preset].num_parameters(shown["vocab_size"])
    assert shown["num_parameters"] == count == sum(shown["parameters"].values())
    assert (shown["fp32_bytes"], shown["bf16_bytes"]) == (4 * count, 2 * count)
    flops = PRESETS[preset].flops_per_token(shown["vocab_size"], shown["seq_len"])
    assert shown["flops_per_token"] == flops
    text = raylm("model", "show", preset).out
    assert f"{count:,}" in text
    assert shown["stack"]["attention"] in text


def test_show_takes_sizes_from_the_config(raylm) -> None:
    Path("raylm.yaml").write_text("model: {preset: t5-1m, num_decoder_layers: 5}\n")
    shown = raylm("model", "show", "-o", "json").json
    assert shown["architecture"] == "encoder-decoder"
    assert shown["stack"]["decoder"].startswith("5 layers")
    assert raylm("model", "show", "--set", "model.num_kv_heads=2").code == 2


def test_show_counts_the_tensors_of_a_folder_of_another_type(raylm, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "gpt"
    folder.mkdir()
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 10}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        "transformer.wte.weight": np.zeros((10, 4)),
        "transformer.wpe.weight": np.zeros((8, 4)),
        "transformer.h.0.attn.c_attn.weight": np.zeros((4, 12)),
        "transformer.h.0.mlp.c_fc.weight": np.zeros((4, 16)),
        "transformer.h.0.ln_1.weight": np.zeros(4),
    }
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    shown = raylm("model", "show", str(folder), "-o", "json").json
    assert shown["parameters"] == {
        "embedding.tokens": 40, "embedding.positions": 32, "decoder.attention": 48,
        "decoder.mlp": 64, "decoder.norms": 4,
    }  # fmt: skip
    assert shown["flops_per_token"] is None


def test_an_unknown_model_is_an_error(raylm) -> None:
    assert raylm("model", "show", "llama-4m").code == 1
