import asyncio

import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.local import LocalEngine
from raylm.engine.protocol import Capabilities, Grammar
from raylm.engine.runner import StepResult
from raylm.engine.sampler import Sampled
from raylm.errors import RaylmError, RequestError

CAPABILITIES = Capabilities("fake", 100, 400, (1,))


class Runner:
    """Gives every answer token 40 in each step."""

    num_blocks = num_free_blocks = num_waiting = num_queried_tokens = num_found_tokens = 0
    num_guessed_tokens = num_confirmed_tokens = 0

    def __init__(self):
        self.answers = {}

    num_running = property(lambda self: len(self.answers))

    def add(self, answer):
        self.answers[answer.id] = answer

    def cancel(self, request_id):
        del self.answers[request_id]

    def step(self, now_s):
        chunks = [answer.take(Sampled(40)) for answer in list(self.answers.values())]
        for chunk in chunks:
            if chunk.finish_reason:
                del self.answers[chunk.request_id]
        return StepResult(chunks)

    def abandon(self):
        return []

    def close(self):
        self.answers.clear()


@pytest.fixture
def engine(tokenizer):
    engine = LocalEngine(Runner(), tokenizer, CAPABILITIES, EngineConfig())
    yield engine
    engine.close()


def test_an_answer_streams_to_its_end(engine, client):
    (chunks,) = client.ask(engine, client.request([5], max_tokens=4))
    assert client.ids(chunks) == [40] * 4
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, "length"]
    assert engine.stats().generated_tokens_total == 4


def test_a_refusal_comes_before_the_first_chunk(engine, client):
    with pytest.raises(RequestError, match="empty"):
        client.ask(engine, client.request([]))
    assert engine.stats().prompt_tokens_total == 0


def test_an_answer_that_was_complete_needs_no_step(engine, client):
    ((last,),) = client.ask(engine, client.request([5], [40, 1]))
    assert (last.position, last.finish_reason) == (2, "stop")
    assert engine.stats().steps_total == 0


def test_leaving_early_cancels(engine, client):
    async def leave():
        answer = engine.generate(client.request([5], max_tokens=99))
        await answer.__anext__()
        await answer.aclose()
        while engine.stats().num_running:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(leave(), 5))


def test_health_and_requests_fail_once_it_is_closed(engine, client):
    engine.health()
    engine.close()
    with pytest.raises(RaylmError) as error:
        engine.health()
    assert error.value.code == "engine-closed"
    with pytest.raises(RaylmError):
        client.ask(engine, client.request([5]))


def test_without_the_package_grammars_are_refused(tokenizer, client, monkeypatch):
    monkeypatch.setattr("raylm.engine.local.has_grammars", lambda: False)
    engine = LocalEngine(Runner(), tokenizer, CAPABILITIES, EngineConfig())
    with pytest.raises(RequestError) as error:
        client.ask(engine, client.request([5], grammar=Grammar("regex", "a", "guided_regex")))
    assert (error.value.code, error.value.param) == ("unsupported", "guided_regex")
    engine.close()
