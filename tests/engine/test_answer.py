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
