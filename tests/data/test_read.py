import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from raylm.data.parts import cut
from raylm.data.read import End, Raw, most_suggested, read_part
from raylm.data.sources import SourceFile
from raylm.errors import DataError, HostError


def read(path: Path, max_bytes: int = 2**20, text_field: str = "text") -> list[list[Raw | End]]:
    size = path.stat().st_size if path.exists() else 1
    parts = cut([SourceFile(path.name, path, size)], max_bytes)
    return [list(read_part(part, text_field)) for part in parts]


def test_a_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert read(tmp_path / "a.txt") == [[Raw(0, 8, "one\ntwo\n"), End(0)]]


def test_a_binary_file_comes_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x7fELF\0\0")
    [[raw, _]] = read(tmp_path / "a.txt")
    assert isinstance(raw, Raw)
    assert (raw.text, raw.reason, raw.detail) == (None, "binary", "it contains NUL bytes")


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "a"', "not-json", "Expecting ',' delimiter in column 13"),
        (b"[1]", "not-an-object", "a JSON object is expected, found a list"),
        (b"null", "not-an-object", "a JSON object is expected, found null"),
        (b'{"b": 1, "a": 2}', "no-field", "no field 'text'; there are: a, b"),
        (b'{"text": 3}', "not-a-string", "field 'text' holds a number, not text"),
        (b'{"text": null}', "not-a-string", "field 'text' holds null, not text"),
        (b"\0\0", "binary", "it contains NUL bytes"),
        (b"[" * 100_000, "not-json", "maximum recursion depth exceeded"),
    ],
)
def test_a_bad_record_comes_with_line_and_reason(
    tmp_path: Path, line: bytes, reason: str, detail: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "first"}\r\n\n' + line + b'\n{"text": "last"}')
    [[first, bad, last, end]] = read(file)
    assert (first, last) == (Raw(1, 5, "first"), Raw(4, 4, "last"))
    assert isinstance(bad, Raw)
    assert (bad.line, bad.text, bad.reason) == (3, None, reason)
    assert bad.detail.startswith(detail)
    assert end == End(4)


def test_the_field_that_was_meant_is_suggested(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"Text": "x", "n": 1}\n{"id": "7", "content": "a long text"}\n{"n": 1}\n')
    [rows] = read(file)
    assert [r.suggestion for r in rows if isinstance(r, Raw)] == ["Text", "content", ""]
    assert most_suggested(Counter({"b": 2, "a": 2, "c": 1})) == "a"
    assert most_suggested(Counter()) is None


@pytest.mark.parametrize("max_bytes", [1, 7, 20, 33, 1000])
def test_ranges_of_a_file_give_each_line_once(tmp_path: Path, max_bytes: int) -> None:
    file = tmp_path / "a.jsonl"
    texts = ["ü" * (n % 5) + str(n) for n in range(23)]
    file.write_text("\n".join(json.dumps({"text": t}) for t in texts), encoding="utf-8")
    parts = read(file, max_bytes)
    assert [r.text for part in parts for r in part if isinstance(r, Raw)] == texts
    assert sum(e.num_lines for part in parts for e in part if isinstance(e, End)) == 23


def test_gzip_files_are_read_through(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n{"text": "y"}\n'))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"whole"))
    [rows] = read(tmp_path / "a.jsonl.gz")
    assert rows == [Raw(1, 1, "x"), Raw(2, 1, "y"), End(2)]
    assert read(tmp_path / "b.txt.gz") == [[Raw(0, 5, "whole"), End(0)]]


@pytest.mark.parametrize("data", [gzip.compress(b"cut off" * 99)[:-9], b"not gzip"])
def test_a_broken_gzip_file_is_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.txt\.gz: not a whole gzip file") as caught:
        read(tmp_path / "a.txt.gz")
    assert caught.value.code == "data-broken-gzip"


def test_a_file_that_this_node_does_not_see_is_the_hosts_fault(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="is not there on this node") as caught:
        read(tmp_path / "gone.txt")
    assert caught.value.code == "data-not-shared"
