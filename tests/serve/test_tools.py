"""Tool calls found in text, however the text is cut."""

from __future__ import annotations

import json
from itertools import combinations

import pytest

from raylm.serve.tools import ToolCall, call_parser, syntax_of

F = '{"name": "f", "arguments": {"x": 1}}'
CALL_F = ToolCall("f", '{"x": 1}')
CALL_G = ToolCall("g", "{}")
HERMES = [
    ("", ""),
    ("just text", "just text"),
    ("  blanks \n around \n", "  blanks \n around \n"),
    ("a < b <tool> c <tool_cal", "a < b <tool> c <tool_cal"),
    (f"<tool_call>{F}</tool_call>", "", CALL_F),
    (f"<tool_call>\n{F}\n</tool_call>", "", CALL_F),
    (f"Let me see.\n\n<tool_call>\n{F}\n</tool_call>\n", "Let me see.", CALL_F),
    (f"<tool_call>{F}</tool_call>\n bye ", "bye ", CALL_F),
    (
        f'<tool_call>{F}</tool_call>\n<tool_call>{{"name": "g", "arguments": {{}}}}</tool_call>',
        "",
        CALL_F,
        CALL_G,
    ),
    ('<tool_call>{"name": "g"}</tool_call>', "", CALL_G),
    ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", CALL_F),
    (f"<tool_call>\n{F}", "", CALL_F),
    (
        '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
        "",
        ToolCall("f", '{"x": "</tool_call>"}'),
    ),
    (
        '<tool_call>{"name": "f", "arguments": {"x": "</tool_call> </tool_call></tool_call>"}}'
        f"</tool_call><tool_call>{F}</tool_call>",
        "",
        ToolCall("f", '{"x": "</tool_call> </tool_call></tool_call>"}'),
        CALL_F,
    ),
    (
        '<tool_call>{"name": "f", "arguments": {"x": "é\\u00e9"}}</tool_call>',
        "",
        ToolCall("f", '{"x": "éé"}'),
    ),
    ("hi <tool_call>nonsense</tool_call> ho", "hi <tool_call>nonsense</tool_call> ho"),
    (f"<tool_call>no</tool_call> <tool_call>{F}</tool_call>", "<tool_call>no</tool_call>", CALL_F),
    ('x <tool_call>{"name": "f", "arg', 'x <tool_call>{"name": "f", "arg'),
    ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>"),
    ('<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>'),
    (
        '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>',
    ),
    (
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    ),
]
P = '{"name": "f", "parameters": {"x": 1}}'
LLAMA = [
    ("", ""),
    ("just text", "just text"),
    (P, "", CALL_F),
    (f"\n {P} \n", "", CALL_F),
    (F, "", CALL_F),
    (f"<|python_tag|>{P}", "", CALL_F),
    (f'{P}; {{"name": "g", "parameters": {{}}}}', "", CALL_F, CALL_G),
    (f'{P}\n{{"name": "g", "parameters": {{}}}}', "", CALL_F, CALL_G),
    (f"Here: {P}", f"Here: {P}"),
    (f"{P} and text", f"{P} and text"),
    ('{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}'),
    ('{"name": "h", "parameters": {}}', '{"name": "h", "parameters": {}}'),
    ('{"name": "f", "parameters": {"x": ', '{"name": "f", "parameters": {"x": '),
    ("<|python", "<|python"),
    ("  ", "  "),
]
CASES = [("hermes", *case) for case in HERMES] + [("llama", *case) for case in LLAMA]


def read(syntax, parts):
    parser = call_parser(syntax, {"f", "g"})
    pieces = [piece for part in parts for piece in parser.feed(part)] + parser.flush()
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    return text, [piece for piece in pieces if isinstance(piece, ToolCall)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}: {case[1]}"[:60])
def test_text_and_calls_are_the_same_wherever_the_text_is_cut(case):
    syntax, source, text, *calls = case
    expected = (text, calls)
    assert read(syntax, [source]) == expected
    assert read(syntax, source) == expected
    for cut in range(len(source)):
        assert read(syntax, [source[:cut], source[cut:]]) == expected
    for first, second in combinations(range(0, len(source), 5), 2):
        parts = [source[:first], source[first:second], source[second:]]
        assert read(syntax, parts) == expected


def test_text_comes_as_soon_as_it_is_settled():
    parser = call_parser("hermes", ())
    assert parser.feed("one two ") == ["one two"]
    assert parser.feed("three <too") == [" three"]
    assert parser.feed("th> ") == [" <tooth>"]
    assert parser.feed(f"<tool_call>{F}</tool_call") == []
    assert parser.feed(">") == [CALL_F]
    parser = call_parser("llama", {"f"})
    assert parser.feed(" ") == []
    assert parser.feed("one ") == [" one "]
    assert parser.feed(P) == [P]


def test_arguments_are_json_of_what_was_written():
    arguments = {"s": 'a "b" \\ ü', "n": [1, 2.5, None, True], "o": {}}
    written = json.dumps({"name": "f", "arguments": arguments})
    (call,) = read("hermes", [f"<tool_call>{written}</tool_call>"])[1]
    assert json.loads(call.arguments) == arguments


@pytest.mark.parametrize(
    ("template", "syntax"),
    [
        (r"""{{ "<tool_call>\n{\"name\": x, \"arguments\": y}\n</tool_call>" }}""", "hermes"),
        ("""<tool_call>{"name": {{ n }}, "arguments": {{ a }}}</tool_call>""", "hermes"),
        ("<tool_call><function=f><parameter=x>{{ tool_call.arguments }}", None),
        ("""Respond in the format {"name": function name, "parameters": ...}""", "llama"),
        ("{{ '<|python_tag|>' }}", "llama"),
        ("{{ '[TOOL_CALLS]' }}{{ tools }}", None),
    ],
)
def test_the_template_tells_how_calls_are_written(template, syntax):
    assert syntax_of(template) == syntax
