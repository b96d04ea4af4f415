from pathlib import Path

from raylm.data.parts import Part, cut, group
from raylm.data.sources import SourceFile


def file(name: str, size: int) -> SourceFile:
    return SourceFile(name, Path("/") / name, size)


def test_only_plain_jsonl_is_cut_into_ranges() -> None:
    files = [file("a.txt", 250), file("b.jsonl", 250), file("c.jsonl.gz", 250), file("d.jsonl", 0)]
    parts = cut(files, max_bytes=100)
    assert [(p.number, p.name, p.start, p.end) for p in parts] == [
        (0, "a.txt", 0, 250),
        (1, "b.jsonl", 0, 100),
        (2, "b.jsonl", 100, 200),
        (3, "b.jsonl", 200, 250),
        (4, "c.jsonl.gz", 0, 250),
        (5, "d.jsonl", 0, 0),
    ]
    assert Part(**parts[1].to_row()) == parts[1]


def test_small_parts_go_together_and_stay_in_order() -> None:
    parts = cut([file(f"{n}.txt", 5000) for n in range(7)])
    groups = group(parts, target_bytes=12_000)
    assert [[p.number for p in g] for g in groups] == [[0, 1], [2, 3], [4, 5], [6]]
    assert [len(g) for g in group(parts, target_bytes=1)] == [1] * 7
    assert group([], target_bytes=1) == []
