"""The runner over a model that has no arithmetic: the next token is a hash of all before it.

The model reads those tokens back from its blocks, so that one wrong block changes the answer.
"""

import hashlib
import itertools
import math
import random
from itertools import pairwise

import numpy as np
import pytest

from raylm.config.engine import EngineConfig
from raylm.engine.answer import Answer
from raylm.engine.openvino import PagedRunner
from raylm.engine.protocol import Capabilities, Request, Sampling
from raylm.errors import RaylmError

VOCAB_SIZE = 60
BOMB, BAD, GARBAGE = 50, 51, -1  # raises once there are 12 tokens; gives NaNs from there on
CAPABILITIES = Capabilities("fake", 1000, VOCAB_SIZE, ())


def next_token(tokens):
    digest = hashlib.blake2b(np.array(tokens, np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 50


def parrot(tokens):
    """Mostly what was there seven tokens before, so that guesses are often right, never surely."""
    drawn = next_token(tokens)
    return drawn if len(tokens) < 7 or drawn % 6 == 0 else tokens[-7] % 50


def answer_to(prompt, count, follow=next_token):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(follow(tokens))
    return tokens[len(prompt) :]


class Model:
    """A bomb that goes off leaves garbage in whatever its step would have written."""

    bombs = True

    def __init__(self, num_blocks=16, block_size=4, follow=next_token):
        self.follow = follow
        self.num_blocks, self.block_size = num_blocks, block_size
        self.memory = np.full((num_blocks, block_size), GARBAGE)
        self.num_failures = self.num_computed = self.num_passes = 0
        self.always_fails = False
        self.scrubbed = []

    def forward(self, batch):
        begins, block_begins = batch.subsequence_begins, batch.block_indices_begins
        logits, fails = np.zeros((len(batch.token_ids), VOCAB_SIZE), np.float32), self.always_fails
        written = []
        for index, past in enumerate(batch.past_lens):
            new = batch.token_ids[begins[index] : begins[index + 1]]
            blocks = batch.block_indices[block_begins[index] : block_begins[index + 1]]
            held = self.memory[blocks].reshape(-1)
            held[past : past + len(new)] = new
            self.memory[blocks] = held.reshape(-1, self.block_size)
            written += [(b, past, len(new)) for b in [blocks]]
            tokens = held[: past + len(new)].tolist()
            assert GARBAGE not in tokens
            fails |= self.bombs and tokens[0] == BOMB and len(tokens) >= 12
            for offset in range(len(new)):
                seen = tokens[: past + offset + 1]
                logits[begins[index] + offset, self.follow(seen)] = np.nan if BAD in seen else 5.0
        if fails:
            self.num_failures += 1
            for blocks, past, count in written:
                for position in range(past, past + count):
                    self.memory[blocks[position // self.block_size], position % self.block_size] = (
                        GARBAGE
                    )
            raise ValueError("a bomb")
        self.num_computed += len(batch.token_ids)
        self.num_passes += 1
        return logits[batch.rows]

    def scrub(self, blocks):
        self.memory[blocks] = 0
        self.scrubbed += blocks

    def close(self):
        pass


class Draft(Model):
    """The same, in memory of its own, and it never raises: its guesses are right where its memory
    holds what it should."""

    bombs = False


class Client:
    """Steps a runner as the loop does, and keeps what comes out, by request."""

    def __init__(self, tokenizer, model, draft=None, **config):
        self.tokenizer, self.model = tokenizer, model
        # By this clock every step takes a second, so that no guess costs anything.
        clock = itertools.count().__next__
        self.runner = PagedRunner(model, EngineConfig(**config), draft=draft, clock=clock)
        if draft is not None:
            self.runner._speculation._guesser._clock = lambda: 0.0
        self.chunks, self.errors, self.ended = {}, {}, set()

    def add(
        self, id, prompt, max_tokens=6, emitted=(), salt="", priority=0, deadline_s=None, **sampling
    ):
        request = Request(
            id,
            tuple(prompt),
            Sampling(max_tokens=max_tokens, temperature=0.0, **sampling),
            tuple(emitted),
            cache_salt=salt,
            priority=priority,
            deadline_s=deadline_s,
        )
        self.chunks[id] = []
        self.runner.add(Answer(request, self.tokenizer, CAPABILITIES))

    def step(self):
        try:
            result = self.runner.step(0.0)
        except ValueError as error:
            for id in self.runner.abandon() or []:
                self.errors[id] = error
            return
        for chunk in result.chunks:
            self.chunks[chunk.request_id].append(chunk)
        self.errors.update(result.failed)

    def run(self, limit=2000):
        while self.runner.num_running or self.runner.num_waiting:
            self.step()
            limit -= 1
            assert limit

    def ids(self, id):
        chunks = self.chunks[id]
        for before, chunk in pairwise(chunks):
            assert chunk.position == before.position + len(before.token_ids)
        return [token for chunk in chunks for token in chunk.token_ids]


@pytest.fixture
def make(tokenizer):
    def make(num_blocks=16, follow=next_token, draft=None, **config):
        model = Model(num_blocks, follow=follow)
        if draft is not None:
            config["speculation"] = {"kind": "draft", "model": "small", "num_tokens": draft}
            draft = Draft(num_blocks, follow=follow)
        return Client(tokenizer, model, draft, **{"max_batch_tokens": 64, **config})

    return make


def test_the_first_chunk_tells_what_was_cached(make):
    client = make()
    client.add("a", range(10))
    client.run()
    client.add("b", range(10))
    client.add("c", range(10), emitted=answer_to(range(10), 3))
    client.add("d", range(10), salt="other")
    client.run()
    cached = {id: [c.num_cached_tokens for c in found] for id, found in client.chunks.items()}
    assert cached["a"] == [0, None, None, None, None, None]
    assert cached["b"] == [8, None, None, None, None, None]
    assert cached["c"] == [10, None, None]  # 12 tokens were found; the prompt has 10
    assert cached["d"][0] == 0
    assert client.ids("c") == answer_to(range(10), 6)[3:]
    assert client.runner.num_queried_tokens == 43 and client.runner.num_found_tokens == 20


def test_without_the_cache_everything_is_computed(make):
    client = make(prefix_cache=False)
    for id in "ab":
        client.add(id, range(10))
        client.run()
        assert client.chunks[id][0].num_cached_tokens == 0
    assert client.model.num_computed == 2 * 15


@pytest.mark.parametrize("num", [1, 2, 7, 8])
def test_the_request_that_breaks_a_step_fails_alone(make, num):
    for culprit in range(num):
        client = make(num_blocks=64)
        for index in range(num):
            client.add(str(index), [BOMB if index == culprit else index, 1, 2], max_tokens=15)
        client.run()
        assert list(client.errors) == [str(culprit)]
        for index in range(num):
            if index != culprit:
                assert client.ids(str(index)) == answer_to([index, 1, 2], 15)
        assert len(client.ids(str(culprit))) == 9  # what was told before stays told
        assert client.model.num_failures <= 1 + math.ceil(math.log2(num))
        assert client.runner.num_free_blocks == 64


def test_what_shared_blocks_with_the_culprit_is_not_found_again(make):
    client = make(num_blocks=64)
    prompt = [BOMB, *range(10)]
    client.add("bomb", prompt, max_tokens=3)
    client.run()
    assert isinstance(client.errors["bomb"], ValueError)
    client.add("again", prompt[:6], max_tokens=1)
    client.run()
    assert client.chunks["again"][0].num_cached_tokens == 0


def test_a_model_that_always_fails_ends_one_request_after_the_other(make):
    client = make(num_blocks=64)
    client.model.always_fails = True
    for index in range(4):
        client.add(str(index), [index])
    client.run()
    assert sorted(client.errors) == ["0", "1", "2", "3"]
    assert client.model.num_failures == 3 + 2 + 2 + 1


def test_a_failure_that_does_not_come_again_ends_nobody(make):
    client = make(num_blocks=64)
    for index in range(6):
        client.add(str(index), [index, 1, 2])
    client.step()
    client.model.always_fails = True
    client.step()
    client.model.always_fails = False
    client.run()
    assert not client.errors
    for index in range(6):
        assert client.ids(str(index)) == answer_to([index, 1, 2], 6)


def test_a_suspect_that_is_cancelled_holds_nobody_up(make):
    client = make(num_blocks=64)
    for index in range(4):
        client.add(str(index), [BOMB if index == 3 else index, 1, 2], max_tokens=15)
    while not client.model.num_failures:
        client.step()
    for id in "01":
        client.runner.cancel(id)
    client.run()
    assert list(client.errors) == ["3"]
    assert client.ids("2") == answer_to([2, 1, 2], 15)


def test_a_row_that_is_not_finite_fails_its_request_alone_and_its_blocks_are_zeroed(make):
    client = make()
    client.add("good", [1, 2, 3, 4, 5])
    client.add("bad", [1, 2, 3, 4, BAD, 6, 7, 8, 9])
    client.step()
    assert list(client.errors) == ["bad"] and client.errors["bad"].code == "non-finite-logits"
    assert len(client.model.scrubbed) == 3 and len(set(client.model.scrubbed)) == 3
    client.run()
    assert client.ids("good") == answer_to([1, 2, 3, 4, 5], 6)
    client.add("bad again", [1, 2, 3, 4, BAD, 6, 7, 8, 9])
    client.run()
    assert client.errors["bad again"].code == "non-finite-logits"
    assert client.runner.num_free_blocks == 16


def test_an_answer_that_cannot_take_its_token_fails_alone(make, monkeypatch):
    client = make()
    whole = Answer.take

    def take(answer, sampled):
        if answer.id == "b" and answer.num_emitted == 2:
            raise KeyError("no such piece")
        return whole(answer, sampled)

    monkeypatch.setattr(Answer, "take", take)
    for id in "abc":
        client.add(id, [5])
    client.run()
    assert isinstance(client.errors["b"], RaylmError)
    assert client.errors["b"].code == "engine-step-failed"
    assert client.ids("a") == client.ids("c") == answer_to([5], 6)
    assert client.runner.num_free_blocks == 16


def test_the_prompt_s_logprobs_come_with_the_first_chunk_in_pieces_or_at_once(make):
    prompt = [random.Random(1).randrange(40) for _ in range(30)]
    found = []
    for budget in (16, 64):
        client = make(max_batch_tokens=budget)
        client.add("warm", prompt)
        client.run()
        client.add("a", prompt, num_prompt_logprobs=2)
        client.add("b", prompt)
        client.run()
        first, *rest = client.chunks["a"]
        assert first.num_cached_tokens == 0 and client.chunks["b"][0].num_cached_tokens == 28
        assert client.ids("a") == client.ids("b") == answer_to(prompt, 6)
        assert all(chunk.prompt_logprobs == () for chunk in rest + client.chunks["b"])
        found.append(first.prompt_logprobs)
    assert found[0] == found[1]
    nothing, *entries = found[0]
    assert nothing is None and [entry.token_id for entry in entries] == prompt[1:]
    total = math.log(math.exp(5.0) + VOCAB_SIZE - 1)
    for position, entry in enumerate(entries):
        likely = next_token(prompt[: position + 1])
        assert entry.top[0] == (likely, pytest.approx(5.0 - total, abs=1e-5))
        expected = (5.0 if entry.token_id == likely else 0.0) - total
        assert entry.logprob == pytest.approx(expected, abs=1e-5) and len(entry.top) == 2


def test_a_continued_answer_and_a_prompt_of_one_token_have_little_to_score(make):
    client = make()
    client.add("one", [7], num_prompt_logprobs=0)
    client.add("on", [7, 8], emitted=[1], num_prompt_logprobs=0)
    client.run()
    assert client.chunks["one"][0].prompt_logprobs == (None,)
    assert client.chunks["on"][0].prompt_logprobs == ()


def test_scoring_goes_on_where_it_was_when_the_prompt_is_read_anew(make):
    client = make(num_blocks=10, max_batch_tokens=16)
    client.add("low", range(30), num_prompt_logprobs=0)
    client.step()
    client.add("high", range(28), priority=1, max_tokens=2)
    client.run()
    assert client.runner.num_preempted == 1
    entries = client.chunks["low"][0].prompt_logprobs
    assert [entry and entry.token_id for entry in entries] == [None, *range(1, 30)]


def test_a_scored_answer_that_is_preempted_later_finds_its_prompt_again(make):
    client = make(max_batch_size=1)
    client.add("low", range(30), num_prompt_logprobs=0)
    client.step()
    client.add("high", [40], priority=1, max_tokens=1)
    client.step()
    before = client.model.num_computed
    client.step()
    assert client.model.num_computed - before == 3  # of 31 tokens, the last block's
    client.run()
    assert client.ids("low") == answer_to(range(30), 6)


def test_a_deadline_is_told_even_if_the_step_fails(make):
    client = make()
    client.model.always_fails = True
    client.add("late", [1], deadline_s=-1.0)
    client.add("broken", [2])
    client.run()
    assert client.errors["late"].code == "deadline_exceeded"
    assert isinstance(client.errors["broken"], ValueError)


def test_right_guesses_save_steps_and_wrong_ones_change_nothing(make):
    prompt = [3, 14, 15, 9, 26, 5, 35] * 2
    steps = {}
    for speculation in (None, {"num_tokens": 5, "ngram": 2}):
        client = make(num_blocks=64, follow=parrot, speculation=speculation)
        client.add("a", prompt, max_tokens=60, num_logprobs=1)
        num_steps = 0
        while client.runner.num_running or client.runner.num_waiting:
            client.step()
            num_steps += 1
        assert client.ids("a") == answer_to(prompt, 60, parrot)
        logprobs = [entry for chunk in client.chunks["a"] for entry in chunk.logprobs]
        assert [entry.token_id for entry in logprobs] == client.ids("a")
        runner = client.runner
        steps[speculation is not None] = num_steps
        assert num_steps == 60 - runner.num_confirmed_tokens
        assert runner.num_free_blocks == 64
    assert steps[False] == 60 and steps[True] < 40
    assert 0 < runner.num_confirmed_tokens < runner.num_guessed_tokens


def test_guessed_tokens_do_not_outlive_the_answer(make):
    for max_tokens in range(1, 9):
        client = make(follow=lambda tokens: 7, speculation={"num_tokens": 16, "ngram": 1})
        client.add("a", [7, 7, 7, 7], max_tokens=max_tokens)
        client.run()
        assert client.ids("a") == [7] * max_tokens
        assert client.chunks["a"][-1].finish_reason == "length"
        assert client.model.num_computed == 4 + max_tokens - 1


def test_a_rejected_guess_is_in_no_block_that_is_found_again(make):
    prompt = [1, 2, 3, 4, 5, 6, 1, 2]
    for count in range(1, 20):
        client = make(num_blocks=64, speculation={"num_tokens": 7, "ngram": 1})
        client.add("a", prompt, max_tokens=count)
        client.run()
        whole = prompt + answer_to(prompt, count)
        assert client.runner.num_guessed_tokens > 0 or count == 1
        client.add("b", whole, max_tokens=8)
        client.run()
        assert client.ids("b") == answer_to(whole, 8)
        assert client.chunks["b"][0].num_cached_tokens == (len(whole) - 1) // 4 * 4


def test_sampling_that_fails_behind_a_guess_leaves_what_was_drawn_before(make, monkeypatch):
    from raylm.engine import openvino as module

    client = make(follow=lambda tokens: 7, speculation={"num_tokens": 3, "ngram": 1})
    whole, calls = module.sample, []

    def sample(logits, rows):
        calls.append([row.position for row in rows])
        if calls[-1] == [1]:
            raise MemoryError
        return whole(logits, rows)

    client.add("a", [7, 7], max_tokens=9)
    with monkeypatch.context() as patch:
        patch.setattr(module, "sample", sample)
        client.step()
    assert client.ids("a") == [7] and calls == [[0], [1]]
    client.run()
    assert client.ids("a") == [7] * 9 and not client.errors


@pytest.mark.parametrize("speculates", [None, "prompt_lookup", "draft"])
@pytest.mark.parametrize("seed", range(12))
def test_random_traffic_with_bombs_gives_every_other_answer_in_full(make, seed, speculates):
    rng = random.Random(seed)
    follow, speculation = next_token, None
    if speculates == "prompt_lookup":
        follow, speculation = parrot, {"num_tokens": 1 + seed % 6, "ngram": 1 + seed % 3}
    client = make(
        follow=follow,
        speculation=speculation,
        draft=1 + seed % 6 if speculates == "draft" else None,
        num_blocks=rng.randint(12, 30),
        max_batch_size=rng.randint(1, 8),
        max_batch_tokens=rng.randint(16, 40),
        prefix_cache=rng.random() < 0.8,
    )
    stems = [[rng.randrange(50) for _ in range(40)] for _ in range(2)]
    asked, born = {}, 0
    while born < 60 or client.runner.num_running or client.runner.num_waiting:
        if born < 60 and rng.random() < 0.5:
            prompt = [*rng.choice(stems)[: rng.randint(1, 24)], rng.randrange(50)]
            kind = rng.choices(["good", "bomb", "bad"], [8, 1, 1])[0]
            if kind == "bomb":
                prompt[0] = BOMB
            elif kind == "bad":
                prompt[rng.randrange(len(prompt))] = BAD
            id, count = f"{kind}-{born}", rng.randint(1, 20)
            asked[id] = (prompt, count)
            client.add(
                id,
                prompt,
                max_tokens=count,
                salt=rng.choice(["", "", "t"]),
                priority=rng.randint(0, 1),
                num_prompt_logprobs=rng.choice([None, None, None, 1]),
            )
            born += 1
        client.step()
        assert client.model.num_failures < 1000
    for id, (prompt, count) in asked.items():
        if id.startswith("good"):
            assert client.ids(id) == answer_to(prompt, count, follow), id
        elif id.startswith("bad"):
            assert client.errors[id].code == "non-finite-logits"
        elif len(prompt) + count > 12:
            assert isinstance(client.errors[id], ValueError)
    assert not any(id.startswith("good") for id in client.errors)
    assert (client.runner.num_confirmed_tokens > 0) == (speculates is not None)
    assert client.runner.num_free_blocks == client.model.num_blocks


def test_a_draft_that_says_the_same_is_always_right(make):
    client = make(num_blocks=64, draft=4)
    prompts = [range(10), range(3, 30), [7]]
    for id, prompt in zip("abc", prompts, strict=True):
        client.add(id, prompt, max_tokens=40)
    num_steps = 0
    while client.runner.num_running or client.runner.num_waiting:
        client.step()
        num_steps += 1
    for id, prompt in zip("abc", prompts, strict=True):
        assert client.ids(id) == answer_to(prompt, 40)
    runner = client.runner
    assert runner.num_confirmed_tokens == runner.num_guessed_tokens > 80
    assert num_steps < 15


def test_what_the_draft_has_read_of_a_prefix_is_not_read_again(make):
    client = make(num_blocks=64, draft=4)
    draft = client.runner._speculation._guesser._model
    client.add("a", range(40), max_tokens=9)
    client.run()
    whole, before = [*range(40), *answer_to(range(40), 9)], draft.num_computed
    assert before < 40 + 9
    client.add("b", whole, max_tokens=2)
    client.run()
    assert client.chunks["b"][0].num_cached_tokens == 44
    assert draft.num_computed - before <= 9
    assert client.runner.num_confirmed_tokens == client.runner.num_guessed_tokens


def test_a_draft_catches_up_where_nothing_was_asked_of_it(make):
    client = make(num_blocks=64, draft=3, max_batch_tokens=16)
    client.runner._speculation._guesser.offer = lambda sequence, most: 0
    client.add("a", range(20), max_tokens=60)
    for _ in range(12):
        client.step()
    assert client.runner.num_guessed_tokens == 0
    del client.runner._speculation._guesser.offer
    client.run()
    assert client.ids("a") == answer_to(range(20), 60)
    assert client.runner.num_confirmed_tokens == client.runner.num_guessed_tokens > 30


def test_a_draft_that_breaks_is_switched_off(make, caplog):
    client = make(num_blocks=64, draft=3)
    client.runner._speculation._guesser._model.forward = None
    client.add("a", range(20), max_tokens=9)
    client.run()
    assert client.ids("a") == answer_to(range(20), 9) and not client.errors
    assert caplog.text.count("guessing failed and is switched off") == 1


@pytest.mark.parametrize("guesser", ["prompt_lookup", "draft"])
@pytest.mark.parametrize("share_right", [0.0, 0.1, 1.0])
def test_guessing_stops_where_it_fails_and_goes_on_where_it_does_not(make, guesser, share_right):
    """A guessed token takes 0.4 of a step, and a draft's pass 0.1."""

    def follow(tokens):
        drawn = next_token(tokens)
        return 40 if drawn < 50 * share_right else drawn

    settings = {"speculation": {"num_tokens": 4, "ngram": 1}}
    client = make(
        num_blocks=256, follow=follow, **(settings if guesser != "draft" else {"draft": 4})
    )
    guess = client.runner._speculation._guesser
    model = client.model
    if guesser == "draft":
        guess._model.follow = lambda tokens: 40
        guess._clock = lambda: guess._model.num_passes * 0.1

    def clock():
        return model.num_passes * 0.6 + model.num_computed * 0.4

    client.runner._clock = clock
    client.add("a", [40, 40, 40, 40], max_tokens=400)
    client.step()
    began_s, num_computed = clock(), model.num_computed
    client.run()
    assert client.ids("a") == answer_to([40, 40, 40, 40], 400, follow)
    took_s = clock() - began_s
    if guesser == "draft":
        took_s += guess._clock()
    speed_up = 399 / took_s
    if share_right == 1.0:
        assert speed_up > (1.55 if guesser == "draft" else 1.8)
    else:
        assert speed_up > 0.97
        assert model.num_computed - num_computed < 430
