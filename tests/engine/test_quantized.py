import json

import numpy as np
import pytest

from raylm.engine.quantized import (
    check_quantization,
    integer_weight,
    repack_int4,
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


def test_repacking_keeps_the_nibbles_of_two_columns_a_byte():
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    for num_columns in (16, 32, 12):
        values = torch.randint(-8, 8, (5, num_columns), dtype=torch.int8)
        found = repack_int4(pack_to_int32(values, 4).numpy(), num_columns)
        nibbles = np.stack([found & 15, found >> 4], -1).reshape(5, num_columns).astype(np.int8)
        assert np.array_equal((nibbles ^ 8) - 8, values.numpy())


def test_int4_with_a_scale_per_group_is_within_half_a_step(llama, int4_llama):
    name = "model.layers.1.mlp.down_proj"
    found = integer_weight(open_checkpoint(int4_llama), name)
    assert found is not None
    assert (found.num_bits, found.shape, found.data.shape) == (4, (64, 96), (64, 48))
    assert found.scale.shape == (64, 3)
    nibbles = np.stack([found.data & 15, found.data >> 4], -1).reshape(64, 3, 32).astype(np.int8)
    scale = found.scale[:, :, None]
    weight = open_checkpoint(llama)[f"{name}.weight"].as_float32().reshape(64, 3, 32)
    assert (np.abs(((nibbles ^ 8) - 8) * scale - weight) <= scale / 2 + 1e-6).all()


@pytest.mark.parametrize(
    ("scales", "words"), [((4, 3), (4, 4)), ((3, 1), (4, 4)), ((4, 1), (4, 3)), ((4, 1), (3, 4))]
)
def test_scales_and_words_that_do_not_go_with_the_shape_are_refused(tmp_path, scales, words):
    from safetensors.numpy import save_file

    tensors = {
        "a.weight_packed": np.zeros(words, np.int32),
        "a.weight_scale": np.ones(scales, np.float32),
        "a.weight_shape": np.array([4, 32]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError) as error:
        integer_weight(open_checkpoint(tmp_path), "a")
    assert error.value.code == "damaged-weights"


def test_both_layouts_hold_the_same_weight(llama, int8_llama, quantize, tmp_path):
    plain = quantize(llama, tmp_path, "int-quantized")
    name = "model.layers.1.mlp.down_proj"
    packed = integer_weight(open_checkpoint(int8_llama), name)
    stored = integer_weight(open_checkpoint(plain), name)
    assert packed is not None and stored is not None
    assert np.array_equal(packed.data, stored.data)
    assert np.array_equal(packed.scale, stored.scale)
    weight = open_checkpoint(llama)[f"{name}.weight"].as_float32()
    error = np.abs(packed.data * packed.scale - weight)
    assert (error <= packed.scale / 2 + 1e-6).all()


def test_a_layer_that_is_not_quantized_has_none(int8_llama):
    assert integer_weight(open_checkpoint(int8_llama), "lm_head") is None


def test_the_fixtures_configs_are_covered(int8_llama, int4_llama, llama):
    for folder in (int8_llama, int4_llama):
        assert check_quantization(json.loads((folder / "config.json").read_text()))
    assert not check_quantization(json.loads((llama / "config.json").read_text()))


@pytest.mark.parametrize(
    "changes",
    [
        {"quant_method": "gptq"},
        {"format": "nvfp4-pack-quantized"},
        {"kv_cache_scheme": {"num_bits": 8}},
        *(
            {"config_groups": {"g": {**GROUP, "weights": {**GROUP["weights"], **other}}}}
            for other in (
                {"num_bits": 3},
                {"type": "float"},
                {"symmetric": False},
                {"strategy": "block"},
                {"num_bits": 4, "strategy": "group", "actorder": "group"},
            )
        ),
        {
            "format": "int-quantized",
            "config_groups": {"g": {**GROUP, "weights": {**GROUP["weights"], "num_bits": 4}}},
        },
        {"config_groups": {"g": {**GROUP, "input_activations": {"num_bits": 8}}}},
    ],
)
def test_other_quantizations_are_named_as_not_covered(changes):
    with pytest.raises(ModelError) as error:
        check_quantization({"quantization_config": {**CONFIG, **changes}})
    assert error.value.code == "unsupported-architecture"


def test_stored_precision_is_that_of_the_linear_layers(llama, int8_llama, int4_llama, make_model):
    folders = llama, int8_llama, int4_llama, make_model("Llama", dtype="bfloat16")
    found = [stored_precision(open_checkpoint(folder)) for folder in folders]
    assert found == ["f32", "int8", "int4", "bf16"]
