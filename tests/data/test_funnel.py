import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raylm.config.data import DataConfig
from raylm.data.funnel import check_readable, check_usable, funnel, set_aside_lines
from raylm.data.parts import cut
from raylm.data.scan import Corpus, SetAside
from raylm.data.select import Selection
from raylm.data.sources import SourceFile
from raylm.errors import DataError

FILES = [SourceFile("a.jsonl", Path("/a.jsonl"), 1000)]


def corpus(num_good: int, bad: list[SetAside], suggestions: dict[str, int] | None = None) -> Corpus:
    return Corpus(
        parts=cut(FILES),
        part=np.zeros(num_good, np.int32),
        line=np.arange(1, num_good + 1),
        raw_bytes=np.full(num_good, 10),
        num_bytes=np.arange(num_good),
        hashes=np.array([bytes([n]) * 16 for n in range(num_good)], dtype="S16"),
        num_repaired=2,
        excerpts=[],
        set_aside=bad,
        suggestions=Counter(suggestions or {}),
    )


def bad_record(line: int, reason: str = "not-json") -> SetAside:
    return SetAside(f"a.jsonl:{line}", reason, "why", 7, jsonl=True)


def failure(found: Corpus, **config: float) -> DataError:
    with pytest.raises(DataError) as caught:
        check_readable(found, DataConfig(paths=("a.jsonl",), **config))
    return caught.value


def test_bad_records_up_to_the_share_are_only_set_aside() -> None:
    check_readable(corpus(9, [bad_record(3)]), DataConfig(paths=("a",), max_bad=0.1))
    error = failure(corpus(8, [bad_record(3)]), max_bad=0.1)
    assert error.code == "data-bad-records"
    assert error.message == ("a.jsonl:3: why (1 of 9 records cannot be used, data.max_bad=0.1)")


def test_a_missing_field_offers_the_one_that_was_meant() -> None:
    bad = [bad_record(1), *(bad_record(n, "no-field") for n in (2, 3))]
    error = failure(corpus(0, bad, {"content": 2}))
    assert error.code == "data-no-field"
    assert error.message.startswith("a.jsonl:2: why (3 of 3 records")
    assert error.hint == "set data.text_field to 'content'"


def test_binary_files_do_not_count_as_records_but_need_company() -> None:
    binary = [SetAside(f"{n}.png", "binary", "NULs", 100, jsonl=False) for n in range(50)]
    check_readable(corpus(2, binary), DataConfig(paths=("a",), max_bad=0))
    error = failure(corpus(0, binary))
    assert error.code == "data-all-binary"
    assert error.message == "none of 50 files is text, e.g. 0.png: NULs"
    assert failure(corpus(0, [])).code == "data-empty"


def test_the_funnel_counts_documents_and_bytes_of_each_step() -> None:
    found = corpus(6, [bad_record(9)])
    none = np.zeros(6, bool)
    short, duplicate, train, held = (none.copy() for _ in range(4))
    short[[0, 1]], duplicate[2], train[[3, 5]], held[4] = True, True, True, True
    steps = funnel(FILES, found, Selection(short, duplicate, train, held))
    assert steps == [
        {"step": "found", "files": 1, "bytes": 1000},
        {"step": "read", "documents": 7, "bytes": 67},
        {
            "step": "cleaned",
            "documents": 6,
            "bytes": 15,
            "set_aside": {"not-json": 1},
            "set_aside_bytes": 7,
            "repaired": 2,
        },
        {"step": "long enough", "documents": 4, "bytes": 14, "dropped": 2},
        {"step": "unique", "documents": 3, "bytes": 12, "dropped": 1},
        {"step": "train", "documents": 2, "bytes": 8},
        {"step": "held_out", "documents": 1, "bytes": 4},
    ]
    json.dumps(steps)


def test_what_is_set_aside_is_listed_a_line_each() -> None:
    lines = set_aside_lines([bad_record(3), SetAside("ü.bin", "binary", "NULs", 1, jsonl=False)])
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"source": "a.jsonl:3", "reason": "not-json", "detail": "why", "num_bytes": 7},
        {"source": "ü.bin", "reason": "binary", "detail": "NULs", "num_bytes": 1},
    ]
    assert set_aside_lines([]) == ""


def test_records_have_a_step_of_their_own() -> None:
    found = corpus(3, [])
    none = np.zeros(3, bool)
    train, held = np.array([True, False, False]), np.array([False, False, True])
    step = {"dropped": 1, "reasons": {"too-long": 1}, "truncated": 0}
    steps = funnel(FILES, found, Selection(none, none, train, held), step)
    assert steps[5] == {"step": "encoded", "documents": 2, "bytes": 2} | step
    assert [s["step"] for s in steps[6:]] == ["train", "held_out"]


def test_records_that_the_template_refuses_count_as_bad() -> None:
    found = corpus(9, [bad_record(3)])
    config = DataConfig(paths=("a",), format="chat", max_bad=0.2)
    refused = [bad_record(4, "template-refused"), bad_record(5, "template-refused")]
    check_usable(found, [], config)
    check_usable(found, refused[:1], config)
    with pytest.raises(DataError) as caught:
        check_usable(found, refused, config)
    assert caught.value.code == "data-bad-records"
    assert caught.value.message.startswith("a.jsonl:4: why (2 of 10 records")


def test_a_missing_field_of_a_record_names_the_option() -> None:
    bad = [bad_record(n, "no-field") for n in (1, 2)]
    config = DataConfig(paths=("a",), format="chat")
    with pytest.raises(DataError) as caught:
        check_readable(corpus(0, bad, {"data.fields.messages to 'turns'": 2}), config)
    assert caught.value.hint == "set data.fields.messages to 'turns'"
    with pytest.raises(DataError) as caught:
        check_readable(corpus(0, bad), config)
    assert caught.value.hint == "set data.fields to the names that the records use"
