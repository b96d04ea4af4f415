"""Tools through the gateway: into the prompt, out of the answer, and enforced where asked for."""

from __future__ import annotations

import asyncio
import json

import jsonschema
import openai
import pytest

from raylm.engine.grammar import Grammars
from raylm.engine.protocol import Capabilities
from raylm.errors import RequestError
from raylm.model.chat import ChatTemplate
from raylm.serve.toolset import toolset_of
from raylm.serve.wire import ChatBody
from tests.serve.conftest import make_tokenizer, write_model_files
from tests.serve.grammar_engines import ScriptedEngine, closing, random_engine

HERMES = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": {{ c.function.name | tojson }}, "arguments": '
    "{{ c.function.arguments | tojson }}}</tool_call>{% endfor %}{{ '\\n' }}{% endfor %}"
)
LLAMA = HERMES.replace('<tool_call>{"name"', '{"name"').replace("</tool_call>", "")
LLAMA = LLAMA.replace('"arguments": ', '"parameters": ')
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "$defs": {"unit": {"enum": ["C", "F"]}},
            "type": "object",
            "properties": {
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                "unit": {"$ref": "#/$defs/unit"},
            },
            "required": ["zip", "unit"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
MESSAGES = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"zip": "12345"}}\n</tool_call>'
ASKED = {"model": "tiny", "messages": MESSAGES, "tools": [WEATHER, NOW], "max_tokens": 100}


@pytest.fixture
def open_client(serve_here, tmp_path):
    """open_client(template, script) -> the official client, and the engine behind it."""

    def open_client(template, script):
        served = serve_here(
            files=write_model_files(tmp_path / "model", template=template),
            engine_of=ScriptedEngine,
            script=list(script),
        )
        client = openai.OpenAI(
            base_url="http://testserver/v1", api_key="none", http_client=served.client
        )
        return client, served.engine

    return open_client


@pytest.fixture
def force(serve_here, tmp_path):
    """force(template, tags, **asked) -> choices of a model that draws at random."""
    engines = []

    def engine_of(tokenizer):
        engines.append(random_engine(tokenizer))
        return engines[-1]

    def force(template, tags=(), **asked):
        folder = write_model_files(tmp_path / "model", template=template, tags=tags)
        served = serve_here(files=folder, engine_of=engine_of)
        client = openai.OpenAI(
            base_url="http://testserver/v1", api_key="none", http_client=served.client
        )
        with closing(engines.pop()):
            return client.chat.completions.create(
                **ASKED | {"seed": 3, "n": 4, "max_tokens": 400} | asked
            ).choices

    return force


def prompt_of(engine):
    ids = list(engine.seen[-1].prompt_ids)
    return engine.tokenizer.decode(ids, skip_special_tokens=False)


def test_tools_and_their_calls_go_through_the_template(open_client):
    client, engine = open_client(HERMES, ["fine"])
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"zip": "12345"}'},
    }
    client.chat.completions.create(
        **ASKED
        | {
            "messages": [
                *MESSAGES,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            ]
        }
    )
    head, _, rest = prompt_of(engine).partition("</tools>")
    assert json.loads(head.removeprefix("<tools>")) == [WEATHER, NOW]
    assert rest == (
        '<user>hi\n<assistant><tool_call>{"name": "get_weather", "arguments": {"zip": "12345"}}'
        "</tool_call>\n<tool>rain\n"
    )


def test_with_choice_none_the_model_sees_no_tools_and_its_answer_is_text(open_client):
    client, engine = open_client(HERMES, [CALL])
    answer = client.chat.completions.create(**ASKED, tool_choice="none")
    assert prompt_of(engine) == "<user>hi\n"
    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("before", ["", "I look it up.\n"])
def test_a_call_is_told_from_the_text_around_it(open_client, before):
    client, _ = open_client(HERMES, [before + CALL, before + CALL])
    choice = client.chat.completions.create(**ASKED).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == (before.rstrip() or None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"zip": "12345"}
    text, streamed = "", []
    for event in client.chat.completions.create(**ASKED, stream=True):
        delta = event.choices[0].delta
        text += delta.content or ""
        streamed += delta.tool_calls or []
        reason = event.choices[0].finish_reason
    assert (text, reason) == (before.rstrip(), "tool_calls")
    assert [(c.index, c.type, c.function.name) for c in streamed] == [
        (0, "function", "get_weather")
    ]
    assert json.loads(streamed[0].function.arguments) == {"zip": "12345"}


def test_several_calls_have_ids_and_indices_of_their_own(open_client):
    script = [f"{CALL}\n{CALL}"] * 4
    client, _ = open_client(HERMES, script)
    choices = client.chat.completions.create(**ASKED, n=2).choices
    ids = [call.id for choice in choices for call in choice.message.tool_calls]
    assert len(set(ids)) == 4
    with client.chat.completions.stream(**ASKED) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["zip"] for call in calls] == ["12345"] * 2


def test_an_answer_without_calls_is_unchanged_and_streams(open_client):
    client, _ = open_client(HERMES, ["  so it is. "] * 2)
    assert client.chat.completions.create(**ASKED).choices[0].message.content == "  so it is. "
    events = list(client.chat.completions.create(**ASKED, stream=True))
    assert "".join(e.choices[0].delta.content or "" for e in events) == "  so it is. "
    assert len([e for e in events if e.choices[0].delta.content]) > 2
    assert events[-1].choices[0].finish_reason == "stop"


def test_llama_calls_are_whole_answers_under_known_names(open_client):
    known = '{"name": "now", "parameters": {}}'
    client, _ = open_client(LLAMA, [known, known.replace("now", "then")])
    choice = client.chat.completions.create(**ASKED).choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == ["now"]
    choice = client.chat.completions.create(**ASKED).choices[0]
    assert choice.message.tool_calls is None and choice.finish_reason == "stop"


@pytest.mark.parametrize("tags", [(), ("<tool_call>", "</tool_call>")], ids=["spelled", "tokens"])
@pytest.mark.parametrize("template", [HERMES, LLAMA], ids=["hermes", "llama"])
def test_a_required_call_is_made_and_valid(force, template, tags):
    choices = force(template, tags, tool_choice="required", parallel_tool_calls=False)
    assert [choice.finish_reason for choice in choices] == ["tool_calls"] * 4
    for choice in choices:
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        if call.function.name == "now":
            assert arguments == {}
        else:
            assert call.function.name == "get_weather"
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])


def test_a_named_function_is_the_one_that_is_called(force):
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in force(HERMES, tool_choice=named):
        assert {call.function.name for call in choice.message.tool_calls} == {"get_weather"}


@pytest.mark.parametrize("is_parallel", [True, False])
def test_calls_of_strict_tools_follow_their_schema_whenever_they_are_made(force, is_parallel):
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    tags = ("<tool_call>", "</tool_call>")
    choices = force(
        HERMES,
        tags,
        tools=[strict],
        parallel_tool_calls=is_parallel,
        logit_bias={
            str(make_tokenizer().get_vocab_size()): 6
        },  # the opening tag: one is drawn now and then
    )
    calls = [call for choice in choices for call in choice.message.tool_calls or []]
    assert len(calls) >= 3
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    most = max(len(choice.message.tool_calls or []) for choice in choices)
    assert most > 1 if is_parallel else most == 1


def broken(**parameters):
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


@pytest.mark.parametrize(
    ("template", "change", "param", "says"),
    [
        ("{{ messages }}", {}, "tools", "template has no tools"),
        (
            "{{ messages }}",
            {"tools": None, "messages": [{"role": "tool", "tool_call_id": "a", "content": "x"}]},
            "messages",
            "template has no tools",
        ),
        ("{{ tools }}", {}, "tools", "not known"),
        (HERMES, {"tools": None, "tool_choice": "required"}, "tool_choice", "no tools"),
        (
            HERMES,
            {"tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "'g'",
        ),
        (HERMES, {"tools": [NOW, NOW]}, "tools", "same name"),
        (HERMES, {"tools": [NOW] * 129}, "tools", "129 tools are more than 128"),
        (HERMES, {"response_format": {"type": "json_object"}}, "response_format", "form"),
        (
            HERMES,
            {"tools": [broken(**{"not": {}})], "tool_choice": "required"},
            "tools",
            "the tool 'f': the keyword 'not' at #",
        ),
        (HERMES, {"tools": [{"type": "code"}]}, "tools.0.type", "function"),
        (
            HERMES,
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools.0.function.name",
            "pattern",
        ),
    ],
)
def test_what_tools_cannot_do_is_a_400_that_says_why(open_client, template, change, param, says):
    client, _ = open_client(template, [])
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ASKED | change)
    assert error.value.param == param
    assert says in error.value.message


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "tool_call_id": "a"}, "messages.0"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "messages.0.tool_calls.0.id"),
        (
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[1]"}}
                ],
            },
            "messages.0.tool_calls.0.function",
        ),
        (
            {
                "role": "user",
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            "messages.0",
        ),
    ],
)
def test_messages_that_do_not_fit_their_role_are_refused(open_client, message, param):
    client, _ = open_client(HERMES, [])
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ASKED | {"messages": [message]})
    assert error.value.param == param


HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"zip": "12345", "unit": "C"}}\n'
LLAMA_CALL = '{"name": "get_weather", "parameters": {"zip": "12345", "unit": "C"}}'


@pytest.mark.parametrize(
    ("template", "text", "is_allowed"),
    [
        (HERMES, "hello", True),
        (HERMES, f"hello {HERMES_CALL}</tool_call> bye", True),
        (HERMES, f"{HERMES_CALL}</tool_call>\n{HERMES_CALL}</tool_call>", True),
        (HERMES, 'hello <tool_call>\n{"name": "other"', False),
        (HERMES, HERMES_CALL.replace("12345", "1234"), False),
        (LLAMA, "hello {", True),
        (LLAMA, LLAMA_CALL, True),
        (LLAMA, f"{LLAMA_CALL} and more", False),
        (LLAMA, '{"name": "other"', False),
    ],
)
def test_what_a_model_may_write_that_may_call_a_strict_tool(template, text, is_allowed):
    tokenizer = make_tokenizer()
    compiler = Grammars(tokenizer, Capabilities("none", 512, tokenizer.get_vocab_size(), (2,)))
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    body = ChatBody.parse({"model": "m", "messages": MESSAGES, "tools": [strict]})
    toolset = toolset_of(body, ChatTemplate(template, {}, max_chars=9999), max_tools=9)
    grammar = toolset.grammar(tokenizer.token_to_id)
    ids = tokenizer.encode(text).ids
    if is_allowed:
        assert asyncio.run(compiler.matcher(grammar, ids)).allowed[2]
    else:
        with pytest.raises(RequestError, match="does not allow"):
            asyncio.run(compiler.matcher(grammar, ids))
    compiler.close()
