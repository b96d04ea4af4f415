"""Speculation over real models: the same answers, f32, as without it."""

import asyncio
import itertools
import random

import numpy as np
import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.load import load
from raylm.engine.protocol import Grammar
from raylm.errors import ConfigError

GUESSING = {"speculation": {"num_tokens": 4, "ngram": 2}}
VOCAB_SIZE = 400


@pytest.fixture(scope="module")
def start(start):
    def counted(folder, **changes):
        engine = start(folder, **changes)
        # By this clock no guess costs anything, so that figures do not hang on the machine.
        engine._loop._runner._clock = itertools.count().__next__
        return engine

    return counted


@pytest.fixture(scope="module")
def plain(start, llama):
    return start(llama)


@pytest.fixture(scope="module")
def guessing(start, llama):
    return start(llama, **GUESSING)


@pytest.fixture(scope="module")
def repetitive():
    """Prompts that repeat themselves, by phrases of 2 to 20 tokens out of a few."""
    rng = random.Random(5)
    phrases = [[rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(2, 20))] for _ in range(6)]
    return [
        [token for _ in range(rng.randint(1, 8)) for token in rng.choice(phrases)]
        for _ in range(40)
    ]


def told(chunks):
    """All that an answer tells, however it is cut."""
    ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
    positions = np.cumsum([0, *(len(chunk.token_ids) for chunk in chunks)])[:-1]
    assert [chunk.position for chunk in chunks] == positions.tolist()
    entries = [entry for chunk in chunks for entry in chunk.logprobs]
    text = "".join(chunk.text for chunk in chunks)
    return ids, text, chunks[-1].finish_reason, [entry.token_id for entry in entries]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.4},
        {"temperature": 0.9, "top_p": 0.9, "top_k": 40},
        {"repetition_penalty": 1.05, "frequency_penalty": 0.1, "presence_penalty": 0.1},
        {"temperature": 0.3, "num_logprobs": 2},
        {"stop": ("e", "th"), "min_tokens": 3, "logit_bias": ((5, 2.0),)},
        {"temperature": 0.5, "grammar": Grammar("regex", "(ab|ba|[c-f]){10,20}")},
    ],
    ids=["greedy", "seeded", "nucleus", "penalties", "logprobs", "stop", "grammar"],
)
def test_answers_are_those_without_guesses(plain, guessing, client, repetitive, sampling):
    settings = {"max_tokens": 40, **sampling}
    asked = [
        client.request(prompt, seed=seed, **settings) for seed, prompt in enumerate(repetitive)
    ]
    before = guessing.stats()
    expected = [told(chunks) for chunks in client.ask(plain, *asked)]
    assert [told(chunks) for chunks in client.ask(guessing, *asked)] == expected
    stats = guessing.stats()
    assert stats.guessed_tokens_total > before.guessed_tokens_total
    assert stats.num_free_blocks == stats.num_blocks
    assert plain.stats().guessed_tokens_total == 0


def test_a_repeated_answer_takes_fewer_steps_in_chunks_of_several_tokens(
    plain, guessing, client, repetitive
):
    bias = ((11, 100.0),)
    asked = {"max_tokens": 60, "logit_bias": bias, "ignore_eos": True}
    steps = []
    for engine in (plain, guessing):
        before = engine.stats()
        (chunks,) = client.ask(engine, client.request(repetitive[0], **asked))
        after = engine.stats()
        steps.append(after.steps_total - before.steps_total)
        confirmed = after.confirmed_tokens_total - before.confirmed_tokens_total
        assert len(client.ids(chunks)) == 60 == steps[-1] + confirmed
    assert steps[0] == 60 and steps[1] < 40
    assert max(len(chunk.token_ids) for chunk in chunks) == 5


def test_an_answer_continued_after_any_token_is_the_same(guessing, client, repetitive):
    sampling = {"max_tokens": 24, "temperature": 0.4, "seed": 3, "ignore_eos": True}
    prompt = repetitive[1]
    (whole,) = client.ask(guessing, client.request(prompt, **sampling))
    ids = client.ids(whole)
    requests = [client.request(prompt, ids[:k], **sampling) for k in range(len(ids))]
    for done, chunks in enumerate(client.ask(guessing, *requests)):
        assert client.ids(chunks) == ids[done:]
        assert chunks[0].position == done


def test_preemption_and_full_batches_do_not_change_the_answers(
    start, llama, plain, client, repetitive
):
    small = start(llama, kv_cache_bytes=2**20, max_batch_tokens=64, **GUESSING)
    asked = [client.request(p, max_tokens=60, ignore_eos=True) for p in repetitive]
    expected = [told(chunks) for chunks in client.ask(plain, *asked)]
    assert [told(chunks) for chunks in client.ask(small, *asked)] == expected
    assert small._loop._runner.num_preempted > 0
    stats = small.stats()
    assert stats.confirmed_tokens_total > 0 and stats.num_free_blocks == stats.num_blocks


def test_cancelling_one_leaves_the_others_their_text(plain, guessing, client, repetitive):
    asked = [client.request(p, max_tokens=40, ignore_eos=True) for p in repetitive[:9]]
    expected = [told(chunks) for chunks in client.ask(plain, *asked)]

    async def cancelled(request):
        found = []
        async for chunk in guessing.generate(request):
            found.append(chunk)
            guessing.cancel(request.id)
        return found

    async def together():
        return await asyncio.gather(
            *((cancelled if i % 3 == 0 else whole)(r) for i, r in enumerate(asked))
        )

    async def whole(request):
        return await client.chunks(guessing, request)

    for index, chunks in enumerate(asyncio.run(together())):
        if index % 3:
            assert told(chunks) == expected[index]
        else:
            ids = client.ids(chunks)
            assert chunks[-1].finish_reason == "cancelled" and len(ids) < 40
            assert ids == expected[index][0][: len(ids)]
    assert guessing.stats().num_free_blocks == guessing.stats().num_blocks


def test_the_torch_engine_refuses_it(llama, cache_root):
    config = EngineConfig(kind="torch", **GUESSING)
    with pytest.raises(ConfigError, match="does not speculate") as error:
        load(llama, config, cache_root=cache_root, digest="d")
    assert error.value.code == "unsupported-speculation"
