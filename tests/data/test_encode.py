import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raylm.data.encode as encode_module
from raylm.config.data import DataConfig
from raylm.data.encode import KEPT_SCHEMA, encode_parts, kept_rows, token_dtype, tokens_of
from raylm.data.parts import PART_SCHEMA, Part, cut
from raylm.data.sample import Sampling
from raylm.data.scan import Corpus, gather, scan_parts
from raylm.data.sources import list_files
from raylm.data.tokenizer import load_tokenizer, train_tokenizer
from raylm.errors import DataError

CONFIG = DataConfig(paths=(".",))


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    yield
    os.environ.pop("TOKENIZERS_PARALLELISM", None)
    if before is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = before


@pytest.fixture
def root(tmp_path: Path, text: Callable[[int, int], str]) -> Path:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(text(number, 20 + number))
    return tmp_path


def scanned(root: Path) -> tuple[list[Part], Corpus]:
    parts = cut(list_files(CONFIG, root))
    group = pa.Table.from_pylist([p.to_row() for p in parts], schema=PART_SCHEMA)
    tables = scan_parts(group, config=CONFIG, seed=0, sampling=Sampling(1.0, 10**6))
    return parts, gather(parts, tables)


def encode(parts: list[Part], rows: dict[int, tuple[list[int], bytes]], **more: Any) -> pa.Table:
    group = pa.Table.from_pylist(
        [p.to_row() | dict(zip(("kept", "hashes"), rows[p.number], strict=True)) for p in parts
         if p.number in rows],
        schema=KEPT_SCHEMA,
    )  # fmt: skip
    return pa.concat_tables(encode_parts(group, config=CONFIG, eos=0, **more))


@pytest.mark.parametrize("batch_bytes", [1, 10**6])
def test_kept_documents_become_tokens_ended_by_eos(
    root: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(encode_module, "_BATCH_BYTES", batch_bytes)
    parts, corpus = scanned(root)
    tokenizer = train_tokenizer([e.text for _, e in corpus.excerpts], 300)
    kept = np.array([True, False, True, True, False, True])
    rows = kept_rows(corpus, kept)
    assert sorted(rows) == [0, 2, 3, 5]
    table = encode(parts, rows, tokenizer=tokenizer.to_str(), dtype="<u2")
    tokens, counts = tokens_of(table)
    assert tokens.dtype == np.uint16
    documents = np.split(tokens, np.cumsum(counts)[:-1])
    reader = load_tokenizer(tokenizer.to_str())
    for document, number in zip(documents, np.flatnonzero(kept), strict=True):
        assert document[-1] == 0
        assert reader.decode(document[:-1].tolist()) == corpus.excerpts[number][1].text
    assert table["exact"].to_pylist() == [True] * 4


@pytest.mark.parametrize("change", ["other text", ""])
def test_a_corpus_that_changes_in_between_is_noticed(root: Path, change: str) -> None:
    parts, corpus = scanned(root)
    tokenizer = train_tokenizer([e.text for _, e in corpus.excerpts], 300)
    (root / "3.txt").write_text(change)
    with pytest.raises(DataError, match=r"3\.txt changed") as caught:
        encode(
            parts, kept_rows(corpus, np.ones(6, bool)), tokenizer=tokenizer.to_str(), dtype="<u2"
        )
    assert caught.value.code == "data-changed"


def test_rows_of_records_count_the_readable_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{\n{"text": "b"}\n{"text": "c"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "d"}\n')
    _, corpus = scanned(tmp_path)
    rows = kept_rows(corpus, np.array([False, True, True, True]))
    assert {part: numbers for part, (numbers, _) in rows.items()} == {0: [1, 2], 1: [0]}
    assert rows[0][1] == corpus.hashes[1:3].tobytes()


def test_the_token_type_is_the_smallest_that_fits() -> None:
    assert token_dtype(65_536) == np.dtype("<u2")
    assert token_dtype(65_537) == np.dtype("<u4")
