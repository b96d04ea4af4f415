"""Answers that follow a grammar, whatever the logits say."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import jsonschema
import pytest

from raylm.config.engine import EngineConfig
from raylm.engine import grammar as grammars
from raylm.engine.grammar import Grammars, Matcher
from raylm.engine.local import LocalEngine
from raylm.engine.protocol import Capabilities, Grammar
from raylm.errors import RequestError
from tests.engine.random_runner import RandomRunner

EOS = 1
CAPABILITIES = Capabilities("random", 2048, 400, (EOS,))
ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string", "minLength": 1, "maxLength": 12},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
        "country": {"enum": ["DE", "FR", None]},
    },
    "required": ["street", "zip"],
    "additionalProperties": False,
}
SCHEMAS = [
    ADDRESS,
    {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 120}, "maxItems": 4},
    {
        "$defs": {"leaf": {"anyOf": [{"type": "boolean"}, {"const": "näher"}]}},
        "type": "object",
        "properties": {
            "at": {"type": "string", "format": "date"},
            "leaves": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "minItems": 2},
            "where": ADDRESS,
        },
        "required": ["at", "leaves", "where"],
        "additionalProperties": False,
    },
]
REGEXES = [
    r"[a-f0-9]{8}-[a-f0-9]{4}",
    r"(yes|no), (because|though) [a-z ]{3,20}\.",
    r"\d{1,3}(\.\d{1,3}){3}/[a-z]{1,5}",
    "Größe: [0-9]+ €\n?",
]
# 6 ** 7 objects.
PRODUCT = {
    "allOf": [
        {"anyOf": [{"type": "object", "required": [f"{i}{j}"]} for j in range(6)]} for i in range(7)
    ]
}


@pytest.fixture
def make_engine(tokenizer):
    engines = []
    # Brackets and quotes are rare among 400 tokens; without help, strings would never end.
    likely = tuple(tokenizer.token_to_id(sign) for sign in '"}],')

    def make(seed=0):
        runner = RandomRunner(tokenizer.get_vocab_size(), seed=seed, likely_ids=likely)
        engines.append(LocalEngine(runner, tokenizer, CAPABILITIES, EngineConfig()))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def compiler(tokenizer):
    compiler = Grammars(tokenizer, CAPABILITIES)
    yield compiler
    compiler.close()


def matcher(compiler, grammar, emitted_ids=()):
    return asyncio.run(compiler.matcher(grammar, emitted_ids))


def json_grammar(schema):
    return Grammar("json_schema", json.dumps(schema))


def ask(client, engine, grammar, emitted=(), **sampling):
    settings = {"temperature": 1.0, "max_tokens": 400, **sampling}
    request = client.request([5, 6], emitted, grammar=grammar, **settings)
    return client.ask(engine, request)[0]


def finished_texts(client, engine, grammar):
    """Texts of the finished ones of eight answers; most of them must be."""
    requests = [
        client.request([5], temperature=1.0, max_tokens=400, seed=seed, grammar=grammar)
        for seed in range(8)
    ]
    answers = client.ask(engine, *requests)
    finished = [chunks for chunks in answers if chunks[-1].finish_reason == "stop"]
    assert len(finished) >= 6
    return [client.text(chunks) for chunks in finished]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_finished_answer_is_valid_under_its_schema(make_engine, client, schema):
    texts = finished_texts(client, make_engine(), json_grammar(schema))
    for text in texts:
        jsonschema.validate(json.loads(text), schema)
    assert len(set(texts)) >= 4


@pytest.mark.parametrize("regex", REGEXES)
def test_every_finished_answer_matches_its_regular_expression(make_engine, client, regex):
    texts = finished_texts(client, make_engine(), Grammar("regex", regex))
    assert all(re.fullmatch(regex, text) for text in texts)
    assert len(set(texts)) >= 4


def test_json_object_is_any_object(make_engine, client):
    for text in finished_texts(client, make_engine(), Grammar("json_object")):
        assert isinstance(json.loads(text), dict)


def test_a_lark_grammar_is_followed(make_engine, client):
    lark = 'start: sum\nsum: NUMBER (" + " NUMBER)+ " ="\nNUMBER: /[0-9]{1,3}/\n'
    for text in finished_texts(client, make_engine(), Grammar("lark", lark)):
        assert re.fullmatch(r"\d{1,3}( \+ \d{1,3})+ =", text)


@pytest.mark.parametrize(
    "grammar",
    [json_grammar(ADDRESS), Grammar("regex", REGEXES[1]), Grammar("regex", "[a-z]{2,99}")],
    ids=["json", "regex", "open end"],
)
def test_an_answer_continued_after_any_token_ends_the_same(make_engine, client, grammar):
    bias = ((EOS, 4.0),)
    whole = client.ids(ask(client, make_engine(), grammar, seed=3, logit_bias=bias))
    assert len(whole) > 3
    other = make_engine()
    for k in range(len(whole) + 1):
        rest = ask(client, other, grammar, whole[:k], seed=3, logit_bias=bias)
        assert client.ids(rest) == whole[k:]
        assert rest[-1].finish_reason == "stop"


def test_the_end_is_allowed_only_where_the_grammar_is_fulfilled(compiler, tokenizer):
    a, b, c = (tokenizer.token_to_id(sign) for sign in "abc")
    state = matcher(compiler, Grammar("regex", "ab?c?"))
    assert not state.allowed[EOS] and state.allowed[a] and not state.allowed[b]
    state.advance(a)
    assert state.allowed[EOS] and state.allowed[b] and state.allowed[c]
    state.advance(c)
    assert state.is_complete


def test_an_answer_that_can_go_no_further_stops_with_its_last_token(make_engine, client):
    chunks = ask(client, make_engine(), Grammar("regex", "abc"))
    assert client.text(chunks) == "abc" and EOS not in client.ids(chunks)
    assert chunks[-1].finish_reason == "stop"


def test_ignore_eos_goes_on_for_as_long_as_the_grammar_does(make_engine, client):
    chunks = ask(
        client,
        make_engine(),
        Grammar("regex", "[ab]{1,9}"),
        ignore_eos=True,
        logit_bias=((EOS, 100.0),),
    )
    assert len(client.text(chunks)) == 9 and EOS not in client.ids(chunks)


def test_min_tokens_holds_the_end_back_but_cannot_prolong_a_grammar(make_engine, client):
    likely_end = ((EOS, 100.0),)
    engine = make_engine()
    short = ask(client, engine, Grammar("regex", "[ab]+"), logit_bias=likely_end)
    assert len(client.ids(short)) == 2
    long = ask(client, engine, Grammar("regex", "[ab]+"), logit_bias=likely_end, min_tokens=20)
    assert len(client.ids(long)) == 21
    bounded = ask(client, engine, Grammar("regex", "abc"), min_tokens=20)
    assert client.text(bounded) == "abc"


def test_a_bias_cannot_lead_out_of_the_grammar(make_engine, client, tokenizer):
    x = tokenizer.token_to_id("x")
    chunks = ask(client, make_engine(), Grammar("regex", "[ab]{5}"), logit_bias=((x, 100.0),))
    assert re.fullmatch("[ab]{5}", client.text(chunks))


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        ("regex", "(", "unclosed group"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", "(?=a)b", "look-around"),
        ("lark", "start: foo", 'at 1(8): unknown name: "foo"'),
        ("json_schema", "[1", "not JSON"),
        ("json_schema", "[1]", "must be a JSON object"),
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", '{"format": "roman"}', "Unknown format: roman"),
        ("json_schema", '{"$ref": "#"}', "no text fulfils it"),
        ("json_schema", json.dumps(PRODUCT), "schema too large"),
        ("json_schema", '{"$ref": "https://example.org/schema"}', "example.org"),
        ("json_schema", '{"enum": [' + '"x",' * 40_000 + '"x"]}', "bytes are more than 131072"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_says_why(compiler, kind, source, says):
    with pytest.raises(RequestError) as error:
        matcher(compiler, Grammar(kind, source, "guided_json"))
    assert says in error.value.message
    assert "llguidance" not in error.value.message
    assert (error.value.status, error.value.code) == (400, "invalid_grammar")
    assert error.value.param == "guided_json"


@pytest.mark.parametrize(
    "source",
    ["(a+)+b", "a{1000000}", "(a{1000}){1000}", "(x+x+)+y", "(.*a.{12}b){10}"],
)
def test_regular_expressions_that_explode_elsewhere_are_followed(make_engine, client, source):
    chunks = ask(client, make_engine(), Grammar("regex", source), max_tokens=40)
    assert chunks[-1].finish_reason in ("stop", "length")


def test_a_schema_that_refers_to_itself_is_followed(make_engine, client):
    node = {"type": "object", "properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}}}
    for text in finished_texts(client, make_engine(), json_grammar(node)):
        jsonschema.validate(json.loads(text), node)


def test_an_emitted_token_that_the_grammar_forbids_is_refused(compiler, tokenizer):
    ids = [tokenizer.token_to_id(sign) for sign in "ax"]
    with pytest.raises(RequestError, match="does not allow emitted token 1"):
        matcher(compiler, Grammar("regex", "ab"), ids)


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused():
    from tokenizers import Tokenizer, decoders, models

    words = Tokenizer(models.WordPiece({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.decoder = decoders.WordPiece()
    compiler = Grammars(words, CAPABILITIES)
    with pytest.raises(RequestError, match="tokenizer cannot spell it"):
        matcher(compiler, Grammar("regex", "a"))
    compiler.close()


def test_the_last_grammars_are_kept_within_a_bound(compiler):
    for i in range(200):
        matcher(compiler, Grammar("regex", f"a{{{i}}}b"))
    assert [source for _, source in compiler._kept] == [f"a{{{i}}}b" for i in range(136, 200)]
    for i in range(20):
        matcher(compiler, Grammar("regex", f"{i}" + "x" * 100_000))
    assert len(compiler._kept) == 10


def test_a_kept_grammar_is_not_compiled_again_and_not_changed_by_its_answers(
    compiler, tokenizer, monkeypatch
):
    a = tokenizer.token_to_id("a")
    first = matcher(compiler, Grammar("regex", "ab"))
    monkeypatch.setattr(compiler, "_compile", None)
    second = matcher(compiler, Grammar("regex", "ab", "guided_regex"))
    second.advance(a)
    assert first.allowed[a] and not second.allowed[a]


def test_compiling_has_a_deadline_and_a_queue_that_is_not_to_blame(compiler, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(grammars, "COMPILE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(compiler, "_compile", lambda grammar: release.wait(10))

    async def together():
        both = (compiler.matcher(Grammar("regex", name), ()) for name in "ab")
        return await asyncio.gather(*both, return_exceptions=True)

    first, second = asyncio.run(together())
    release.set()
    assert (first.status, first.code) == (400, "invalid_grammar")
    assert "not compiled within 0.1 s" in first.message
    assert (second.status, second.code) == (503, "overloaded")


def test_a_grammar_that_fails_on_the_way_ends_its_own_answer_alone(
    make_engine, client, monkeypatch
):
    def fails(self, token_id):
        raise RequestError("too complex", code="invalid_grammar", param=self._param)

    monkeypatch.setattr(Matcher, "advance", fails)
    requests = [
        client.request([5], max_tokens=6, ignore_eos=True),
        client.request([5], max_tokens=6, grammar=Grammar("regex", "ab*")),
    ]
    engine = make_engine()

    async def together():
        both = (client.chunks(engine, request) for request in requests)
        return await asyncio.gather(*both, return_exceptions=True)

    free, bound = asyncio.run(together())
    assert len(client.ids(free)) == 6
    assert isinstance(bound, RequestError) and bound.message == "too complex"
    assert engine.stats().num_running == 0


def test_a_closed_engine_compiles_nothing(make_engine, client):
    from raylm.errors import RaylmError

    engine = make_engine()
    engine.close()
    with pytest.raises(RaylmError) as error:
        ask(client, engine, Grammar("regex", "ab"))
    assert error.value.code == "engine-closed"
