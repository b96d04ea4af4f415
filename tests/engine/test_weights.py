import json

import numpy as np
import pytest

from raylm.engine.weights import open_checkpoint
from raylm.errors import ModelError


def code_of(folder):
    with pytest.raises(ModelError) as error:
        open_checkpoint(folder)
    return error.value.code


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int64"])
def test_tensors_are_those_that_safetensors_wrote(tmp_path, dtype):
    import torch
    from safetensors.torch import save_file

    values = torch.arange(-6, 6).reshape(3, 4).to(getattr(torch, dtype)) / 1
    values = values.to(getattr(torch, dtype))
    save_file({"a": values, "b": values[:1].clone()}, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path)
    assert found.names() == ["a", "b"] and "a" in found and "c" not in found
    assert found["a"].shape == (3, 4)
    assert np.array_equal(found["a"].as_float32(), values.float().numpy())


def test_the_index_names_the_files(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.ones(2, np.float32)}, tmp_path / "model-2.safetensors")
    save_file({"c": np.ones(2, np.float32)}, tmp_path / "other.safetensors")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).names() == ["a", "b"]
    (tmp_path / "model-2.safetensors").unlink()
    assert code_of(tmp_path) == "missing-weights"


def test_pickles_are_refused_unopened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert code_of(tmp_path) == "pickled-weights"


def test_an_empty_folder_has_no_weights(tmp_path):
    assert code_of(tmp_path) == "missing-weights"


def test_a_missing_tensor_is_named(llama):
    with pytest.raises(ModelError, match=r"'no\.such'") as error:
        open_checkpoint(llama)["no.such"]
    assert error.value.code == "missing-tensor"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        (2**60).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"{{{{",
        (65).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(65)
        + b"\x00" * 8,
        (65).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,16]}}'.ljust(65)
        + b"\x00" * 16,
    ],
)
def test_damaged_files_are_errors_not_crashes(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert code_of(tmp_path) == "damaged-weights"
