import numpy as np
import pytest

from raylm.engine.answer import Answer
from raylm.engine.protocol import Capabilities, Request, Sampling, TokenLogprob
from raylm.engine.sampler import Sampled

CAPABILITIES = Capabilities("fake", 20, 400, (1,))


@pytest.fixture
def make(tokenizer):
    def make(prompt_ids=(5, 6), emitted_ids=(), **sampling):
        request = Request("a", tuple(prompt_ids), Sampling(**sampling), tuple(emitted_ids))
        return Answer(request, tokenizer, CAPABILITIES)

    return make


def test_positions_go_on_after_the_emitted_tokens(make):
    answer = make(emitted_ids=(40, 41))
    assert answer.row().position == 2
    assert answer.take(Sampled(42)).position == 2
    assert answer.row().position == 3


@pytest.mark.parametrize(
    ("prompt_length", "max_tokens", "expected"), [(2, 5, 5), (18, 5, 2), (19, 1, 1)]
)
def test_the_answer_ends_at_its_limit_or_at_the_context_s(
    make, prompt_length, max_tokens, expected
):
    answer = make(prompt_ids=[7] * prompt_length, max_tokens=max_tokens)
    reasons = [answer.take(Sampled(50)).finish_reason for _ in range(expected)]
    assert reasons == [None] * (expected - 1) + ["length"]


def test_the_end_token_ends_it_without_text(make):
    last = make().take(Sampled(1))
    assert (last.token_ids, last.text, last.finish_reason) == ((1,), "", "stop")


def test_the_end_token_is_banned_until_the_least_length(make):
    answer = make(emitted_ids=(40,), min_tokens=2)
    assert answer.row().banned_ids == (1,)
    answer.take(Sampled(41))
    assert answer.row().banned_ids == ()


def test_ignore_eos_goes_on(make):
    assert make(ignore_eos=True).take(Sampled(1)).finish_reason is None


def test_held_text_comes_with_the_last_token(make, tokenizer):
    (token_id,) = tokenizer.encode("a").ids
    answer = make(max_tokens=2, stop=("aab",))
    assert answer.take(Sampled(token_id)).text == ""
    assert answer.take(Sampled(token_id)).text == "aa"


def test_logprobs_travel_with_their_token(make):
    logprob = TokenLogprob(40, -0.5)
    assert make().take(Sampled(40, logprob)).logprobs == (logprob,)


@pytest.mark.parametrize(
    ("emitted_ids", "sampling", "reason"),
    [
        ((40, 1), {}, "stop"),
        ((40, 1), {"ignore_eos": True}, None),
        ((40, 41), {"max_tokens": 2}, "length"),
        ((40,), {"max_tokens": 2}, None),
        ((), {}, None),
    ],
)
def test_what_was_finished_elsewhere_is_finished_here(make, emitted_ids, sampling, reason):
    last = make(emitted_ids=emitted_ids, **sampling).ended()
    assert (last.finish_reason if last else None) == reason
    if last:
        assert (last.position, last.token_ids) == (len(emitted_ids), ())


def test_a_stop_string_in_the_emitted_tokens_has_ended_the_answer(make, tokenizer):
    last = make(emitted_ids=tokenizer.encode("x STOP").ids, stop=("STOP",)).ended()
    assert last is not None and last.finish_reason == "stop"


def test_penalties_are_kept_only_where_they_are_set(make):
    assert make().row().penalties is None
    assert make(presence_penalty=0.1).row().penalties is not None


def test_the_prompt_s_logprobs_are_noted_once_and_go_out_with_the_first_token(make):
    answer = make(prompt_ids=(5, 6, 7), num_prompt_logprobs=1)
    logits = np.zeros((3, 400), np.float32)
    logits[0, 6], logits[1, 9] = 20.0, 20.0
    assert answer.num_scored == 2
    answer.score(0, logits[:1])
    answer.score(0, logits)  # read anew; the last row is the answer's own
    answer.num_cached_tokens = 0
    first, second = answer.take(Sampled(40)), answer.take(Sampled(41))
    nothing, six, seven = first.prompt_logprobs
    assert nothing is None
    assert (six.token_id, round(six.logprob, 3), six.top[0][0]) == (6, 0.0, 6)
    assert (seven.token_id, round(seven.logprob, 3), seven.top[0][0]) == (7, -20.0, 9)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, None)
    assert second.prompt_logprobs == ()


@pytest.mark.parametrize(
    ("prompt_ids", "emitted_ids", "sampling", "num_scored", "told"),
    [
        ((5, 6, 7), (), {}, 0, ()),
        ((5, 6, 7), (), {"num_prompt_logprobs": 0}, 2, (None,)),
        ((5,), (), {"num_prompt_logprobs": 0}, 0, (None,)),
        ((5, 6, 7), (40,), {"num_prompt_logprobs": 0}, 0, ()),  # was told before
    ],
)
def test_a_prompt_is_scored_where_it_was_asked_for_and_not_twice(
    make, prompt_ids, emitted_ids, sampling, num_scored, told
):
    answer = make(prompt_ids, emitted_ids, **sampling)
    assert answer.num_scored == num_scored
    assert answer.take(Sampled(41)).prompt_logprobs == told
