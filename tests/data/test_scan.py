import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import raylm.data.scan as scan_module
from raylm.config.data import DataConfig
from raylm.data.hashing import text_hash
from raylm.data.parts import PART_SCHEMA, Part, cut, group
from raylm.data.sample import Sampling
from raylm.data.scan import Corpus, gather, scan_parts
from raylm.data.sources import list_files

EVERYTHING = Sampling(1.0, 10**6)


def scan(root: Path, max_bytes: int, task_bytes: int, **config: object) -> Corpus:
    settings = DataConfig(paths=(".",), **config)  # type: ignore[arg-type]
    parts = cut(list_files(settings, root), max_bytes)
    tables = [table(some) for some in group(parts, task_bytes)]
    return gather(parts, (found for t in tables for found in scan_task(t, settings)))


def table(parts: list[Part]) -> pa.Table:
    return pa.Table.from_pylist([p.to_row() for p in parts], schema=PART_SCHEMA)


def scan_task(parts: pa.Table, config: DataConfig) -> list[pa.Table]:
    return list(scan_parts(parts, config=config, seed=0, sampling=EVERYTHING))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    (tmp_path / "b.bin").write_bytes(b"\0\0\0")
    lines = [json.dumps({"text": f"record {n}"}) for n in range(9)]
    lines.insert(4, "{")
    lines.insert(5, '{"body": "no text"}')
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "d.txt").write_bytes(b"a long enough line, then latin-1: \xe9\n")
    return tmp_path


@pytest.mark.parametrize("flush_bytes", [1, 10**6])
@pytest.mark.parametrize(("max_bytes", "task_bytes"), [(10**6, 10**6), (40, 1), (25, 3000)])
def test_documents_come_in_source_order_with_lines_of_the_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int, task_bytes: int, flush_bytes: int
) -> None:
    monkeypatch.setattr(scan_module, "_FLUSH_BYTES", flush_bytes)
    corpus = scan(root, max_bytes, task_bytes)
    records = [f"c.jsonl:{n}" for n in (1, 2, 3, 4, 7, 8, 9, 10, 11)]
    assert [corpus.source(d) for d in range(len(corpus))] == ["a.txt", *records, "d.txt"]
    assert [(item.source, item.reason) for item in corpus.set_aside] == [
        ("b.bin", "binary"), ("c.jsonl:5", "not-json"), ("c.jsonl:6", "no-field")
    ]  # fmt: skip
    texts = ["one\n", *(f"record {n}" for n in range(9)), "a long enough line, then latin-1: �\n"]
    assert corpus.hashes.tolist() == [text_hash(t.encode()) for t in texts]
    assert corpus.num_bytes.tolist() == [len(t.encode()) for t in texts]
    assert corpus.raw_bytes.tolist() == [5, *[8] * 9, 36]
    assert [(d, e.text) for d, e in corpus.excerpts] == list(enumerate(texts))
    assert corpus.num_repaired == 1
    assert dict(corpus.suggestions) == {"body": 1}


def test_an_empty_corpus_has_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    corpus = scan(tmp_path, 100, 100)
    assert (len(corpus), corpus.set_aside) == (0, [])
    assert corpus.hashes.dtype == np.dtype("S16")
