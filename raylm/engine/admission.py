"""Whether a request can be served at all: each limit with its number, as a 400."""

from __future__ import annotations

import math

import numpy as np

from raylm.engine.protocol import Capabilities, Request, Sampling
from raylm.errors import RequestError


def check_request(request: Request, capabilities: Capabilities) -> None:
    """Return if the engine can serve the request.

    Raises:
        RequestError: it cannot; `param` names the field.
    """
    _check_tokens("prompt_ids", request.prompt_ids, capabilities.vocab_size)
    _check_tokens("emitted_ids", request.emitted_ids, capabilities.vocab_size)
    if not request.prompt_ids:
        raise _refused("the prompt is empty", "empty_prompt", "prompt_ids")
    if len(request.prompt_ids) >= capabilities.max_context_tokens:
        raise _refused(
            f"the prompt has {len(request.prompt_ids)} tokens, and the model's context of "
            f"{capabilities.max_context_tokens} tokens must hold the answer too",
            "context_length_exceeded",
            "prompt_ids",
        )
    if request.variant is not None:
        raise _refused(
            f"this engine has no variant {request.variant!r}", "unknown_variant", "variant"
        )
    _check_sampling(request.sampling, capabilities.vocab_size)


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
        ("num_logprobs", logprobs, 0 <= logprobs <= vocab_size, f"between 0 and {vocab_size}"),
    ):
        if not (holds and math.isfinite(value)):
            raise _refused(f"{param}={value} must be {allowed}", "invalid_value", param)
    if not all(sampling.stop):
        raise _refused("a stop string is empty", "invalid_value", "stop")


def _refused(message: str, code: str, param: str) -> RequestError:
    return RequestError(message, code=code, param=param)
