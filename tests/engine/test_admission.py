from dataclasses import replace

import pytest

from raylm.engine.admission import check_request
from raylm.engine.protocol import Capabilities, Grammar, Request, Sampling
from raylm.errors import RequestError

CAPABILITIES = Capabilities("fake", 16, 100, (1,), frozenset({"generate", "prompt_logprobs"}))


def request(prompt_ids=(5,), emitted_ids=(), variant=None, **sampling):
    return Request("a", prompt_ids, Sampling(**sampling), emitted_ids, variant=variant)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"prompt_ids": ()}, "empty_prompt", "prompt_ids"),
        ({"prompt_ids": (5, 100)}, "invalid_token_id", "prompt_ids"),
        ({"prompt_ids": (-1,)}, "invalid_token_id", "prompt_ids"),
        ({"emitted_ids": (100,)}, "invalid_token_id", "emitted_ids"),
        ({"prompt_ids": (5,) * 16}, "context_length_exceeded", "prompt_ids"),
        ({"variant": "pruned"}, "unknown_variant", "variant"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"temperature": -0.1}, "invalid_value", "temperature"),
        ({"temperature": float("nan")}, "invalid_value", "temperature"),
        ({"top_p": 0.0}, "invalid_value", "top_p"),
        ({"top_p": 1.1}, "invalid_value", "top_p"),
        ({"top_k": -1}, "invalid_value", "top_k"),
        ({"repetition_penalty": 0.0}, "invalid_value", "repetition_penalty"),
        ({"frequency_penalty": float("inf")}, "invalid_value", "frequency_penalty"),
        ({"min_p": -0.1}, "invalid_value", "min_p"),
        ({"min_p": 1.1}, "invalid_value", "min_p"),
        ({"min_tokens": 17}, "invalid_value", "min_tokens"),
        ({"logit_bias": ((100, 1.0),)}, "invalid_token_id", "logit_bias"),
        ({"logit_bias": ((9, -100.5),)}, "invalid_value", "logit_bias"),
        ({"logit_bias": ((9, float("nan")),)}, "invalid_value", "logit_bias"),
        ({"grammar": Grammar("regex", "a", "guided_regex")}, "unsupported", "guided_regex"),
        ({"num_logprobs": 101}, "invalid_value", "num_logprobs"),
        ({"num_logprobs": -1}, "invalid_value", "num_logprobs"),
        ({"num_prompt_logprobs": 101}, "invalid_value", "num_prompt_logprobs"),
        ({"num_prompt_logprobs": -1}, "invalid_value", "num_prompt_logprobs"),
        ({"stop": ("a", "")}, "invalid_value", "stop"),
    ],
)
def test_what_cannot_be_served_is_a_400_that_names_the_field(changes, code, param):
    with pytest.raises(RequestError) as error:
        check_request(request(**changes), CAPABILITIES)
    assert (error.value.status, error.value.code, error.value.param) == (400, code, param)


def test_the_limits_themselves_are_served():
    check_request(
        request((0, 99) * 7 + (5,), top_p=1.0, max_tokens=1, num_logprobs=100), CAPABILITIES
    )
    check_request(request(emitted_ids=(5,) * 15), CAPABILITIES)


def test_an_engine_without_logprobs_of_the_prompt_refuses_them():
    without = replace(CAPABILITIES, features=frozenset({"generate"}))
    check_request(request(), without)
    with pytest.raises(RequestError, match="'fake' gives no logprobs of the prompt") as error:
        check_request(request(num_prompt_logprobs=0), without)
    assert (error.value.status, error.value.param) == (400, "num_prompt_logprobs")
