import json

import numpy as np
import pytest

from raylm.engine.quantized import (
    check_quantization,
    int8_weight,
    stored_precision,
    unpack_int8,
)
from raylm.engine.weights import open_checkpoint
from raylm.errors import ModelError

GROUP = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
}
CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": GROUP},
}


@pytest.mark.parametrize("num_columns", [32, 64, 61, 3])
def test_unpacking_inverts_the_library_s_packing(num_columns):
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    values = torch.randint(-128, 128, (5, num_columns), dtype=torch.int8)
    words = pack_to_int32(values, 8).numpy()
    assert np.array_equal(unpack_int8(words, num_columns), values.numpy())


def test_both_layouts_hold_the_same_weight(llama, int8_llama, quantize, tmp_path):
    plain = quantize(llama, tmp_path, "int-quantized")
    name = "model.layers.1.mlp.down_proj"
    packed = int8_weight(open_checkpoint(int8_llama), name)
    stored = int8_weight(open_checkpoint(plain), name)
    assert packed is not None and stored is not None
    assert np.array_equal(packed.integers, stored.integers)
    assert np.array_equal(packed.scale, stored.scale)
    weight = open_checkpoint(llama)[f"{name}.weight"].as_float32()
    error = np.abs(packed.integers * packed.scale - weight)
    assert (error <= packed.scale / 2 + 1e-6).all()


def test_a_layer_that_is_not_quantized_has_none(int8_llama):
    assert int8_weight(open_checkpoint(int8_llama), "lm_head") is None


def test_the_fixture_s_config_is_covered(int8_llama, llama):
    assert check_quantization(json.loads((int8_llama / "config.json").read_text()))
    assert not check_quantization(json.loads((llama / "config.json").read_text()))


@pytest.mark.parametrize(
    "changes",
    [
        {"quant_method": "gptq"},
        {"format": "nvfp4-pack-quantized"},
        {"kv_cache_scheme": {"num_bits": 8}},
        {"config_groups": {"g": {**GROUP, "weights": {**GROUP["weights"], "num_bits": 4}}}},
        {"config_groups": {"g": {**GROUP, "weights": {**GROUP["weights"], "symmetric": False}}}},
        {"config_groups": {"g": {**GROUP, "weights": {**GROUP["weights"], "strategy": "group"}}}},
        {"config_groups": {"g": {**GROUP, "input_activations": {"num_bits": 8}}}},
    ],
)
def test_other_quantizations_are_named_as_not_covered(changes):
    with pytest.raises(ModelError) as error:
        check_quantization({"quantization_config": {**CONFIG, **changes}})
    assert error.value.code == "unsupported-architecture"


def test_stored_precision_is_that_of_the_linear_layers(llama, int8_llama, make_model):
    folders = llama, int8_llama, make_model("Llama", dtype="bfloat16")
    assert [stored_precision(open_checkpoint(f)) for f in folders] == ["f32", "int8", "bf16"]
