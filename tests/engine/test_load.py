import json
import shutil

import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.load import ENGINES, load, why_not_openvino
from raylm.errors import ConfigError, ModelError

SMALL = EngineConfig(kv_cache_bytes=2**21)


def test_the_table_names_what_can_be_loaded():
    assert ENGINES.names() == ["openvino", "torch", "vllm"]
    for name in ENGINES.names():
        assert callable(ENGINES.load(name))


def test_an_unknown_engine_is_an_error_with_the_nearest_name(llama, cache_root):
    with pytest.raises(ConfigError) as error:
        load(llama, EngineConfig(kind="openvno"), cache_root=cache_root, digest="d")
    assert error.value.code == "unknown-engine"
    assert error.value.hint == "did you mean 'openvino'?"


def test_auto_takes_openvino_where_it_can(llama, int8_llama, cache_root):
    assert why_not_openvino(llama) is None and why_not_openvino(int8_llama) is None
    engine = load(llama, SMALL, cache_root=cache_root, digest=llama.name)
    assert engine.capabilities().engine == "openvino"
    engine.close()


def test_auto_takes_torch_for_the_rest_and_says_why(make_model, cache_root, client, caplog):
    folder = make_model("GPT2", n_embd=64, n_layer=2, n_head=4)
    with caplog.at_level("INFO", logger="raylm.engine.load"):
        engine = load(folder, SMALL, cache_root=cache_root, digest="d")
    assert "does not cover architecture GPT2LMHeadModel" in caplog.text
    assert engine.capabilities().engine == "torch"
    (chunks,) = client.ask(engine, client.request([5, 6], max_tokens=3, ignore_eos=True))
    assert len(client.ids(chunks)) == 3
    engine.close()


@pytest.mark.parametrize("kind", ["auto", "openvino", "torch"])
def test_code_shipped_with_a_model_is_never_run(llama, tmp_path, cache_root, kind):
    unsafe = tmp_path / "model"
    shutil.copytree(llama, unsafe)
    config = json.loads((unsafe / "config.json").read_text())
    (unsafe / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ModelError) as error:
        load(unsafe, EngineConfig(kind=kind), cache_root=tmp_path, digest="d")
    assert error.value.code == "remote-code"


@pytest.mark.parametrize("kind", ["auto", "openvino", "torch"])
def test_pickled_weights_are_never_opened(llama, tmp_path, kind):
    pickled = tmp_path / "model"
    shutil.copytree(llama, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError) as error:
        load(pickled, EngineConfig(kind=kind), cache_root=tmp_path, digest="d")
    assert error.value.code == "pickled-weights"


def test_a_converted_folder_serves_by_itself(llama, tmp_path, client):
    from raylm.engine.convert import convert

    convert(llama, tmp_path / "ir")
    engine = load(tmp_path / "ir", SMALL, cache_root=tmp_path / "none", digest="d")
    (chunks,) = client.ask(engine, client.request([5, 6], max_tokens=3, ignore_eos=True))
    assert len(client.ids(chunks)) == 3 and not (tmp_path / "none").exists()
    engine.close()
    (tmp_path / "ir" / "model.bin").write_bytes(b"")
    with pytest.raises(ModelError) as error:
        load(tmp_path / "ir", SMALL, cache_root=tmp_path, digest="d")
    assert error.value.code == "damaged-ir"
