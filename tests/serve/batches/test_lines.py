"""What is said of an input's lines."""

from __future__ import annotations

import json

import pytest

from raylm.serve.batches.lines import MAX_PROBLEMS, check_input, read_lines

CHAT = "/v1/chat/completions"
GOOD = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m"}}


def checked(path, *lines, max_lines=100, max_body_bytes=1000):
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw))
    return check_input(path, CHAT, max_lines=max_lines, max_body_bytes=max_body_bytes)


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b'{"custom_id": NaN}', "invalid_json_line", None),
        (GOOD | {"custom_id": ""}, "invalid_custom_id", "custom_id"),
        (GOOD | {"custom_id": 7}, "invalid_custom_id", "custom_id"),
        (GOOD | {"custom_id": "x" * 513}, "invalid_custom_id", "custom_id"),
        (GOOD | {"method": "GET"}, "invalid_method", "method"),
        (GOOD | {"url": "/v1/embeddings"}, "mismatched_endpoint", "url"),
        (GOOD | {"url": "/metrics"}, "invalid_url", "url"),
        (GOOD | {"body": "text"}, "invalid_body", "body"),
        (GOOD | {"body": {"stream": True}}, "invalid_body", "body.stream"),
        (GOOD | {"body": {"priority": 1}}, "invalid_body", "body.priority"),
        (GOOD | {"body": {"prompt": "x" * 1000}}, "line_too_long", "body"),
        (GOOD | {"body": {"prompt": "x" * 9000}}, "line_too_long", None),
        (GOOD | {"bodi": 1}, "unknown_parameter", "bodi"),
        ({"custom_id": "b"}, "missing_required_parameter", "method"),
        ({}, "missing_required_parameter", "custom_id"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_field(tmp_path, line, code, param):
    found = checked(tmp_path / "in", GOOD, b"", line, GOOD | {"custom_id": "z"})
    assert [(p.line, p.code, p.param) for p in found.problems] == [(3, code, param)]
    assert found.total == 2


def test_a_custom_id_may_not_come_twice(tmp_path):
    found = checked(tmp_path / "in", GOOD, GOOD | {"custom_id": "b"}, GOOD)
    assert [(p.line, p.code) for p in found.problems] == [(3, "duplicate_custom_id")]


def test_what_is_empty_or_too_much_is_refused_as_a_whole(tmp_path):
    assert [p.code for p in checked(tmp_path / "in", b" ", b"").problems] == ["empty_file"]
    many = [GOOD | {"custom_id": str(i)} for i in range(4)]
    assert checked(tmp_path / "in", *many, max_lines=4).problems == ()
    found = checked(tmp_path / "in", *many, max_lines=3)
    assert [(p.line, p.code) for p in found.problems] == [(None, "too_many_tasks")]


def test_not_all_lines_of_a_wrong_file_are_listed(tmp_path):
    assert len(checked(tmp_path / "in", *[b"?"] * 1000).problems) == MAX_PROBLEMS


def test_good_lines_come_with_their_body(tmp_path):
    assert checked(tmp_path / "in", GOOD, GOOD | {"custom_id": "ü"}).problems == ()
    lines = list(read_lines(tmp_path / "in", CHAT))
    assert [(x.number, x.custom_id, x.body) for x in lines] == [
        (1, "a", b'{"model": "m"}'),
        (2, "ü", b'{"model": "m"}'),
    ]
