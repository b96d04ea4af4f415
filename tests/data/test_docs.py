"""The code blocks of docs/data.md are valid."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from raylm.config import load_config
from raylm.config.data import FIELDS, DataConfig
from raylm.data.pack import Documents, write_split
from raylm.data.records import take

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_every_config_is_valid_and_reads_the_record_below_it(tmp_path: Path) -> None:
    configs: list[DataConfig] = []
    for number, text in enumerate(blocks("yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        configs.append(load_config(file).config.data)
    assert [config.format for config in configs] == ["chat", "text"]
    assert configs[1].tokenizer.mask_token
    [record] = blocks("json")
    assert (
        take(json.loads(record), configs[0], str).text == "user\nTwo and two?\nassistant\nFour.\n"
    )


def test_every_format_and_its_fields_are_in_the_table() -> None:
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE)}
    assert list(rows) == list(FIELDS)
    assert all(f"`{name}`" in rows[format] for format, names in FIELDS.items() for name in names)


def test_the_code_reads_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = Documents(np.array([b"\1" * 16]), ["a.txt"], *(np.array([n]) for n in (40, 0, 20)))
    lengths = np.full(30, 2, np.int32)
    figures = write_split(tmp_path / "train", documents, np.arange(20, dtype="<u2"), lengths,
                          seq_len=8, shard_samples=8, padding=0)  # fmt: skip
    np.save(tmp_path / "token_bytes.npy", lengths)
    index = {"schema_version": 1, "seq_len": 8, "vocab_size": 30, "dtype": "<u2",
             "shard_samples": 8, "splits": {"train": figures.to_json()}}  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps(index))
    [code] = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "docs/data.md", "exec"), names)
    show = names["show"]
    assert callable(show)
    show(tmp_path)
    assert capsys.readouterr().out == f"0 8 a.txt {'01' * 16}\ntext (2, 8) 14\n"
