"""Responses through the gateway, read by the official client."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.serve.conftest import write_model_files
from tests.serve.grammar_engines import ScriptedEngine, closing, random_engine
from tests.serve.test_endpoints import expected
from tests.serve.test_toolset import HERMES, NOW, WEATHER

URL = "/v1/responses"


def client_of(served: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key="k", http_client=served.client, max_retries=0
    )


def body(**changes: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "input": "the fox", "max_output_tokens": 4}
    return asked | {"extra_body": {"seed": 7}} | changes


TOOLS = [{"type": "function", **tool["function"]} for tool in (WEATHER, NOW)]
CALLED = '{"zip": "12345"}'


def test_the_answer_is_that_of_the_same_chat(serve_here):
    served = serve_here()
    answer = client_of(served).responses.create(
        **body(instructions="be", metadata={"a": "b"}, store=False)
    )
    assert answer.output_text == expected(served, 7, 4)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert (answer.metadata, answer.instructions) == ({"a": "b"}, "be")
    prompt = served.engine.seen[0].prompt_ids
    assert served.engine.tokenizer.decode(list(prompt), skip_special_tokens=False) == (
        "<bos><system>be\n<user>the fox\n<assistant>"
    )
    usage = answer.usage
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (len(prompt), 4)
    assert usage.total_tokens == len(prompt) + 4


def test_items_of_an_answer_can_be_sent_back(serve_here):
    served = serve_here()
    client = client_of(served)
    first = client.responses.create(**body(include=["message.output_text.logprobs"]))
    turns: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "the fox"}]}]
    turns += [item.model_dump(exclude_none=True) for item in first.output]
    turns += [{"type": "message", "role": "user", "content": "more"}]
    client.responses.create(**body(input=turns))
    seen = served.engine.tokenizer.decode(list(served.engine.seen[1].prompt_ids))
    assert seen == f"<user>the fox\n<assistant>{first.output_text.strip()}\n<user>more\n<assistant>"


def test_a_stream_has_named_events_that_build_up_the_whole(serve_here):
    served = serve_here()
    client = client_of(served)
    asked = body(include=["message.output_text.logprobs"], top_logprobs=2)
    whole = client.responses.create(**asked)
    found = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert [event.type for event in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 4,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event.delta for event in found if event.type == "response.output_text.delta")
    assert text == whole.output_text == found[8].text  # type: ignore[union-attr]
    last = found[-1].response  # type: ignore[union-attr]
    assert json.loads(last.output[0].model_dump_json(exclude={"id"})) == (
        json.loads(whole.output[0].model_dump_json(exclude={"id"}))
    )
    logprobs = whole.output[0].content[0].logprobs  # type: ignore[union-attr]
    assert logprobs is not None
    assert [len(entry.top_logprobs) for entry in logprobs] == [2] * 4
    assert logprobs[0].logprob == -0.5


def test_the_wire_names_each_event_and_has_no_done(serve_here):
    answer = serve_here().client.post(
        URL, json={"model": "tiny", "input": "x", "max_output_tokens": 1, "stream": True}
    )
    blocks = [block.split("\n") for block in answer.text.split("\n\n") if block]
    for name, data in blocks:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert "[DONE]" not in answer.text


def test_a_break_in_mid_stream_is_a_failed_response(serve_here):
    served = serve_here(fail_at=2)
    found = list(client_of(served).responses.create(**body(stream=True)))
    assert found[-1].type == "response.failed"
    assert found[-1].response.status == "failed"
    assert "the engine failed" in found[-1].response.error.message
    with pytest.raises(openai.InternalServerError):
        client_of(serve_here(fail_at=0)).responses.create(**body(stream=True))


class Address(BaseModel):
    zip: str = Field(pattern="^[0-9]{5}$")


def test_the_client_parses_structured_answers(serve_here):
    engines = []

    def engine_of(tokenizer):
        engines.append(random_engine(tokenizer))
        return engines[-1]

    client = client_of(serve_here(engine_of=engine_of))
    with closing(engines[0]):
        asked = {**body(max_output_tokens=300), "text_format": Address}
        parsed = client.responses.parse(**asked)
        assert isinstance(parsed.output_parsed, Address)
        assert parsed.status == "completed"
        assert parsed.text.format.type == "json_schema"
        with client.responses.stream(**asked) as stream:
            assert stream.get_final_response().output_parsed == parsed.output_parsed
        form = {"format": {"type": "json_object"}}
        free = client.responses.create(**body(max_output_tokens=400, text=form))
        assert isinstance(json.loads(free.output_text), dict)


@pytest.fixture
def scripted(serve_here, tmp_path):
    def scripted(*script: str) -> Any:
        files = write_model_files(tmp_path / "model", template=HERMES)
        return serve_here(files=files, engine_of=ScriptedEngine, script=list(script))

    return scripted


CALL = f'<tool_call>{{"name": "get_weather", "arguments": {CALLED}}}</tool_call>'


@pytest.mark.parametrize(
    ("script", "kinds"),
    [(CALL, ["function_call"]), (f"See: {CALL}{CALL}", ["message", *["function_call"] * 2])],
)
def test_calls_are_items_whole_and_streamed(scripted, script, kinds):
    served = scripted(script, script)
    client = client_of(served)
    whole = client.responses.create(**body(tools=TOOLS, max_output_tokens=90))
    assert [item.type for item in whole.output] == kinds
    assert whole.status == "completed"
    call = whole.output[-1]
    assert (call.name, call.arguments, call.status) == ("get_weather", CALLED, "completed")
    found = list(client.responses.create(**body(tools=TOOLS, stream=True, max_output_tokens=90)))
    last = found[-1].response
    assert [(item.type, item.status) for item in last.output] == [(k, "completed") for k in kinds]
    names = [event.type for event in found]
    assert names.count("response.function_call_arguments.done") == kinds.count("function_call")
    for event in found:
        if event.type == "response.output_item.done":
            assert event.item == last.output[event.output_index]


def test_a_named_function_is_called(serve_here, tmp_path):
    engines = []

    def engine_of(tokenizer):
        engines.append(random_engine(tokenizer))
        return engines[-1]

    files = write_model_files(tmp_path / "model", template=HERMES)
    client = client_of(serve_here(files=files, engine_of=engine_of))
    named = {"type": "function", "name": "get_weather"}
    with closing(engines[0]):
        answer = client.responses.create(
            **body(tools=TOOLS, tool_choice=named, parallel_tool_calls=False, max_output_tokens=400)
        )
    (call,) = answer.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])
    assert answer.tool_choice.model_dump() == named
    assert answer.parallel_tool_calls is False


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_calls_open_no_message(scripted, stream):
    served = scripted(CALL, f"Hi {CALL}")
    served.engine.scores = True
    asked = body(tools=TOOLS, include=["message.output_text.logprobs"], max_output_tokens=90)
    client = client_of(served)

    def answer() -> Any:
        if not stream:
            return client.responses.create(**asked)
        return list(client.responses.create(**asked, stream=True))[-1].response

    assert [item.type for item in answer().output] == ["function_call"]
    message, call = answer().output
    assert call.type == "function_call"
    num_tokens = -(-len(f"Hi {CALL}") // served.engine.step_chars)
    assert len(message.content[0].logprobs) == num_tokens


def test_a_call_and_its_output_go_through_the_template(scripted):
    served = scripted("fine")
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "See:"},
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "get_weather",
            "arguments": CALLED,
            "id": "fc_1",
            "status": "completed",
        },
        {"type": "function_call", "call_id": "c2", "name": "now", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]
    client_of(served).responses.create(**body(input=turns, tools=TOOLS, tool_choice="auto"))
    seen = served.engine.tokenizer.decode(list(served.engine.seen[0].prompt_ids))
    shown = seen[seen.index("</tools>") :]
    assert shown == (
        f"</tools><user>hi\n<assistant>See:{CALL}"
        '<tool_call>{"name": "now", "arguments": {}}</tool_call>\n<tool>rain\n'
    )


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
        ({"store": True}, "store", "not supported"),
        ({"background": True}, "background", "not supported"),
        ({"truncation": "auto"}, "truncation", "not supported"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "not supported"),
        ({"input": []}, "input", "non-empty"),
        ({"input": [{"type": "reasoning"}]}, "input.0", "must be a message"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.message.content",
            "'input_image'",
        ),
        ({"input": [{"role": "user", "content": 5}]}, "input.0.message.content", "string"),
        (
            {"input": [{"type": "function_call_output", "output": "x"}]},
            "input.0.function_call_output.call_id",
            "missing",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
            "input.0.function_call",
            "no JSON object",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", ""),
        ({"max_output_tokens": 5000}, "max_output_tokens", "max_output_tokens=5000"),
        ({"top_logprobs": 3}, "top_logprobs", "needs 'include'"),
        ({"stream_options": {}}, "stream_options", "needs 'stream'"),
        (
            {"stream_options": {"include_obfuscation": True}, "stream": True},
            "stream_options.include_obfuscation",
            "False",
        ),
        ({"tool_choice": "any"}, "tool_choice", '"name": ...'),
        ({"tool_choice": {"type": "function"}}, "tool_choice", '"name": ...'),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "none of the tools"),
        ({"include": ["reasoning.encrypted_content"]}, "include.0", ""),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "schema"),
        ({"text": {"format": {"type": "text", "name": "x"}}}, "text.format", "nothing else"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format", "no grammar"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        ({"tools": TOOLS}, "tools", "no tools"),
        ({"input": "x " * 200}, "input", "at most 127 tokens"),
        ({"n": 2}, "n", "unknown field"),
        ({"instruction": "x"}, "instruction", "'instructions'"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(serve_here, change, param, says):
    answer = serve_here().client.post(URL, json={"model": "tiny", "input": "x"} | change)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["param"] == param


def test_values_that_ask_for_nothing_pass(serve_here):
    neutral = {
        "previous_response_id": None,
        "store": False,
        "background": False,
        "truncation": "disabled",
        "reasoning": {},
        "tools": [],
        "include": None,
        "text": {"format": {"type": "text"}},
        "user": "u",
        "service_tier": "auto",
    }
    answer = serve_here().client.post(URL, json={"model": "tiny", "input": "x"} | neutral)
    assert answer.status_code == 200
    assert answer.json()["store"] is False
