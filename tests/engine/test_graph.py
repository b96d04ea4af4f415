import numpy as np
import openvino as ov
import pytest

from raylm.engine.decoder import parse_decoder
from raylm.engine.graph import write_ir
from raylm.engine.weights import open_checkpoint
from raylm.model.folder import read_config


def read_ir(folder, where):
    path = where / "model.xml"
    write_ir(parse_decoder(read_config(folder)), open_checkpoint(folder), path)
    return ov.Core().read_model(path)


def constants(model):
    found = {}
    for op in model.get_ops():
        if op.get_type_name() == "Constant":
            found[op.get_friendly_name()] = op
    return found


def test_int8_integers_and_scales_are_those_of_the_safetensors(int8_llama, tmp_path):
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    stored = load_file(int8_llama / "model.safetensors")
    model = read_ir(int8_llama, tmp_path)
    found = constants(model)
    packed = [name for name in stored if name.endswith(".weight_packed")]
    assert len(packed) == 14
    for name in packed:
        layer = name.removesuffix(".weight_packed")
        shape = stored[f"{layer}.weight_shape"]
        integers = found[f"{layer}.weight"]
        assert integers.get_element_type() == ov.Type.i8
        expected = unpack_from_int32(stored[name], 8, shape).numpy()
        assert np.array_equal(integers.get_data(), expected)
        scale = found[f"{layer}.weight_scale"].get_data()
        assert np.array_equal(scale, stored[f"{layer}.weight_scale"].numpy())
        # Constant -> Convert -> Multiply -> MatMul is the form that the plugin fuses.
        path, node = [], integers
        for _ in range(3):
            (reader,) = node.output(0).get_target_inputs()
            node = reader.get_node()
            path.append(node.get_type_name())
        assert path == ["Convert", "Multiply", "MatMul"]


def test_int4_weights_are_kept_and_fused_as_four_bits(int4_llama, tmp_path):
    model = read_ir(int4_llama, tmp_path)
    found = constants(model)["model.layers.0.mlp.down_proj.weight"]
    assert (found.get_element_type(), list(found.shape)) == (ov.Type.i4, [64, 3, 32])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        op.input_value(1).get_element_type()
        for op in compiled.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].value == "FullyConnected"
    ]
    assert sorted(map(str, kinds)) == sorted(map(str, [ov.Type.i4] * 14 + [ov.Type.f32]))


@pytest.mark.parametrize(("dtype", "kind"), [("float32", ov.Type.f32), ("bfloat16", ov.Type.bf16)])
def test_weights_stay_in_the_type_they_are_stored_in(make_model, tmp_path, dtype, kind):
    folder = make_model("Llama", dtype=dtype)
    model = read_ir(folder, tmp_path)
    found = constants(model)
    weights = open_checkpoint(folder)
    for name in weights.names():
        assert found[name].get_element_type() == kind
        if kind == ov.Type.f32:
            assert np.array_equal(found[name].get_data(), weights[name].data)


def test_tied_embeddings_are_stored_once(make_model, tmp_path):
    folder = make_model("Llama", tie_word_embeddings=True)
    model = read_ir(folder, tmp_path)
    table = constants(model)["model.embed_tokens.weight"]
    readers = {reader.get_node().get_type_name() for reader in table.output(0).get_target_inputs()}
    assert readers == {"Gather", "MatMul"}


def test_the_stateful_graph_itself_gives_the_model_s_logits(llama, tmp_path):
    """The file is an ordinary OpenVINO language model, usable without paged attention."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = np.arange(2, 22, dtype=np.int64)[None]
    compiled = ov.Core().compile_model(
        read_ir(llama, tmp_path),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    )
    request = compiled.create_infer_request()
    rows = []
    for begin, end in ((0, 12), (12, 13), (13, 20)):
        out = request.infer(
            {
                "input_ids": ids[:, begin:end],
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(begin, end)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        rows.append(out["logits"][0].copy())
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits[0].numpy()
    assert np.abs(np.concatenate(rows) - expected).max() < 1e-3


def test_bf16_weights_stay_bf16_in_memory(make_model, tmp_path):
    model = read_ir(make_model("Llama", dtype="bfloat16"), tmp_path)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        op.input_value(1).get_element_type()
        for op in compiled.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].value == "FullyConnected"
    ]
    assert kinds == [ov.Type.bf16] * 15
