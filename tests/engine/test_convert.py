import hashlib
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from raylm.engine import convert as module
from raylm.engine.convert import convert, ensure_ir, is_complete
from raylm.errors import ModelError


def code_of(model_dir, out_dir):
    with pytest.raises(ModelError) as error:
        convert(model_dir, out_dir)
    assert not out_dir.exists() and not list(out_dir.parent.glob(".*.tmp"))
    return error.value.code


def test_the_folder_holds_all_that_serving_needs(llama, tmp_path):
    out = tmp_path / "ir"
    convert(llama, out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert {path.name for path in out.iterdir()} == {
        *("manifest.json", "model.xml", "model.bin", "engine.json"),
        *("config.json", "generation_config.json", "tokenizer.json"),
    }
    for name, facts in manifest["files"].items():
        content = (out / name).read_bytes()
        assert facts["size"] == len(content)
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["libraries"]["openvino"].startswith("2026.")
    facts = json.loads((out / "engine.json").read_text())
    assert facts["eos_token_ids"] == [1] and facts["weights"] == "f32"


def test_it_is_made_once_and_found_by_every_other_caller(llama, tmp_path, monkeypatch):
    conversions = []
    whole = module._convert_apart
    monkeypatch.setattr(
        module, "_convert_apart", lambda *paths: (conversions.append(paths), whole(*paths))
    )
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: ensure_ir(llama, tmp_path, "d"), range(3)))
    assert len(set(made)) == 1 and is_complete(made[0])
    assert len(conversions) == 1


@pytest.mark.parametrize("harm", ["truncate", "remove", "no-manifest", "bad-manifest"])
def test_an_altered_folder_is_made_again(llama, tmp_path, harm):
    made = ensure_ir(llama, tmp_path, "d")
    weights, manifest = made / "model.bin", made / "manifest.json"
    original = weights.read_bytes()
    if harm == "truncate":
        weights.write_bytes(original[:-1])
    elif harm == "remove":
        weights.unlink()
    elif harm == "no-manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    assert not is_complete(made)
    assert ensure_ir(llama, tmp_path, "d") == made
    assert weights.read_bytes() == original


def test_what_a_killed_conversion_left_is_cleared_away(llama, tmp_path):
    made = ensure_ir(llama, tmp_path, "d")
    left_over = made.with_name(f".{made.name}.123.tmp")
    left_over.mkdir()
    shutil.rmtree(made)
    ensure_ir(llama, tmp_path, "d")
    assert not left_over.exists()


def test_a_conversion_killed_midway_leaves_nothing_that_is_taken_for_done(llama, tmp_path):
    out = tmp_path / "ir"
    command = [sys.executable, "-m", "raylm.engine.convert", str(llama), str(out)]
    process = subprocess.Popen(command)
    time.sleep(0.25)
    process.kill()
    process.wait()
    assert not out.exists() or is_complete(out)


def test_the_converter_s_own_error_reaches_the_caller(llama, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(llama, broken)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights") as error:
        ensure_ir(broken, tmp_path / "cache", "d")
    assert error.value.code == "pickled-weights"
    assert "safe_serialization" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("remove", "code"),
    [
        ("config.json", "missing-config"),
        ("tokenizer.json", "missing-tokenizer"),
        ("model.safetensors", "missing-weights"),
    ],
)
def test_a_missing_file_is_named(llama, tmp_path, remove, code):
    broken = tmp_path / "model"
    shutil.copytree(llama, broken)
    (broken / remove).unlink()
    assert code_of(broken, tmp_path / "ir") == code


def test_weights_that_do_not_fit_the_config_do_not_convert(llama, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(llama, broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))
    assert code_of(broken, tmp_path / "ir") == "conversion-failed"


def test_converting_imports_neither_torch_nor_transformers(llama, tmp_path):
    code = (
        "import sys; from pathlib import Path; from raylm.engine.convert import convert;"
        f"convert(Path({str(llama)!r}), Path({str(tmp_path / 'ir')!r}));"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
