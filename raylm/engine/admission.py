"""Whether a request can be served at all: each limit with its number, as a 400."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import numpy as np

from raylm.engine.encode import ClassifyRequest, EmbedRequest
from raylm.engine.protocol import Capabilities, Request, Sampling
from raylm.errors import RequestError

MAX_BIAS = 100.0
"""Enough to forbid a token or to force it; OpenAI's limit."""

Asked = TypeVar("Asked", EmbedRequest, ClassifyRequest)
_CALLS = ("generate", "embed", "classify")


def check_feature(feature: str, capabilities: Capabilities) -> None:
    """See that the model can do what a call asks.

    Raises:
        RequestError: 400, naming what it can do.
    """
    if feature not in capabilities.features:
        able = " and ".join(call for call in _CALLS if call in capabilities.features)
        raise _refused(
            f"this model cannot {feature}; what it can do: {able}", "unsupported_call", "model"
        )


def check_request(request: Request, capabilities: Capabilities) -> None:
    """Return if the engine can serve the request.

    Raises:
        RequestError: it cannot; `param` names the field.
    """
    check_feature("generate", capabilities)
    _check_tokens("prompt_ids", request.prompt_ids, capabilities.vocab_size)
    _check_tokens("emitted_ids", request.emitted_ids, capabilities.vocab_size)
    if not request.prompt_ids:
        raise _refused("the prompt is empty", "empty_prompt", "prompt_ids")
    if len(request.prompt_ids) > capabilities.max_prompt_tokens:
        why = "takes no more" if capabilities.max_answer_tokens else "must hold the answer too"
        raise _refused(
            f"the prompt has {len(request.prompt_ids)} tokens, and the model's context of "
            f"{capabilities.max_context_tokens} tokens {why}",
            "context_length_exceeded",
            "prompt_ids",
        )
    if request.variant is not None:
        raise _refused(
            f"this engine has no variant {request.variant!r}", "unknown_variant", "variant"
        )
    scores_prompt = request.sampling.num_prompt_logprobs is not None
    if scores_prompt and "prompt_logprobs" not in capabilities.features:
        raise _refused(
            f"the engine {capabilities.engine!r} gives no logprobs of the prompt",
            "unsupported_parameter",
            "num_prompt_logprobs",
        )
    _check_sampling(request.sampling, capabilities.vocab_size)
    _check_tokens(
        "logit_bias", tuple(id for id, _ in request.sampling.logit_bias), capabilities.vocab_size
    )
    grammar = request.sampling.grammar
    if grammar is not None and "grammar" not in capabilities.features:
        raise _refused(
            f"the engine {capabilities.engine!r} follows no grammar", "unsupported", grammar.param
        )


def admitted(request: Asked, capabilities: Capabilities) -> Asked:
    """The request as it will be done: cut to the model's limit where it asks for that.

    Raises:
        RequestError: it cannot be done; `param` names the field.
    """
    if isinstance(request, EmbedRequest):
        check_feature("embed", capabilities)
        check_pooling(request.pooling, capabilities)
    else:
        check_feature("classify", capabilities)
    if not request.prompt_ids:
        raise _refused("the input has no tokens", "empty_prompt", "prompt_ids")
    _check_tokens("prompt_ids", request.prompt_ids, capabilities.vocab_size)
    limit = capabilities.max_context_tokens
    if len(request.prompt_ids) <= limit:
        return request
    if request.truncate:
        return replace(request, prompt_ids=request.prompt_ids[:limit])
    raise _refused(
        f"the input has {len(request.prompt_ids)} tokens, and the model takes {limit} at most",
        "context_length_exceeded",
        "prompt_ids",
    )


def check_pooling(pooling: str | None, capabilities: Capabilities) -> None:
    """See that the model can pool so.

    Raises:
        RequestError: it cannot; with the ways it has.
    """
    if pooling is not None and pooling not in capabilities.poolings:
        known = " or ".join(repr(name) for name in capabilities.poolings)
        raise _refused(f"pooling {pooling!r} must be {known}", "invalid_value", "pooling")


def _check_tokens(param: str, token_ids: tuple[int, ...], vocab_size: int) -> None:
    if not token_ids:
        return
    ids = np.fromiter(token_ids, dtype=np.int64, count=len(token_ids))
    if ids.min() < 0 or ids.max() >= vocab_size:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise _refused(
            f"token {wrong} is outside the vocabulary of {vocab_size}", "invalid_token_id", param
        )


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    logprobs = sampling.num_logprobs or 0
    of_prompt = sampling.num_prompt_logprobs or 0
    of_vocab = f"between 0 and {vocab_size}"
    for param, value, holds, allowed in (
        ("max_tokens", sampling.max_tokens, sampling.max_tokens >= 1, "at least 1"),
        ("temperature", sampling.temperature, sampling.temperature >= 0, "at least 0"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0, at most 1"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "at least 0 (0 is off)"),
        (
            "repetition_penalty",
            sampling.repetition_penalty,
            sampling.repetition_penalty > 0,
            "above 0",
        ),
        ("frequency_penalty", sampling.frequency_penalty, True, "finite"),
        ("presence_penalty", sampling.presence_penalty, True, "finite"),
        ("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "between 0 and 1"),
        (
            "min_tokens",
            sampling.min_tokens,
            0 <= sampling.min_tokens <= sampling.max_tokens,
            f"at least 0, at most max_tokens={sampling.max_tokens}",
        ),
        *(
            ("logit_bias", value, abs(value) <= MAX_BIAS, f"within {MAX_BIAS:g} of 0")
            for _, value in sampling.logit_bias
        ),
        ("num_logprobs", logprobs, 0 <= logprobs <= vocab_size, of_vocab),
        ("num_prompt_logprobs", of_prompt, 0 <= of_prompt <= vocab_size, of_vocab),
    ):
        if not (holds and math.isfinite(value)):
            raise _refused(f"{param}={value} must be {allowed}", "invalid_value", param)
    if not all(sampling.stop):
        raise _refused("a stop string is empty", "invalid_value", "stop")


def _refused(message: str, code: str, param: str) -> RequestError:
    return RequestError(message, code=code, param=param)
