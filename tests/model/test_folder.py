import json
from pathlib import Path

import pytest

from raylm.errors import ModelError
from raylm.model.folder import check_folder, tokenizer_files


def folder(path: Path, *files: str, **config: object) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    for name in files:
        (path / name).write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("files", "config", "code"),
    [
        (("pytorch_model.bin",), {}, "pickled-weights"),
        (("model.safetensors",), {"auto_map": {"AutoModel": "x.py"}}, "remote-code"),
        ((), {}, "missing-weights"),
    ],
)
def test_unsafe_or_empty_folders_are_refused(
    tmp_path: Path, files: tuple[str, ...], config: dict[str, object], code: str
) -> None:
    with pytest.raises(ModelError) as caught:
        check_folder(folder(tmp_path, *files, **config))
    assert caught.value.code == code


def test_a_folder_without_or_with_a_broken_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        check_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        check_folder(tmp_path)


def test_safetensors_beside_pickles_are_taken(tmp_path: Path) -> None:
    found = check_folder(folder(tmp_path, "model.safetensors", "pytorch_model.bin", a=1))
    assert found == {"a": 1}


def test_the_tokenizer_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        tokenizer_files(tmp_path)
    assert caught.value.code == "missing-tokenizer"
