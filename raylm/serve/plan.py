"""Plan: what one HTTP call asks of an engine, worked out before anything runs.

Pure: the body, the tokenised prompts and the limits in, engine requests out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylm.config.serve import LimitsConfig
from raylm.engine.protocol import Capabilities, Request, Sampling
from raylm.errors import RequestError
from raylm.serve.wire import ChatBody, CompletionBody, Generation

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Plan:
    """The answers to make: one engine request each, numbered by choice."""

    requests: tuple[Request, ...]
    num_prompt_tokens: int
    """Each prompt counted once, however many answers it gets."""


def plan(
    body: Generation,
    prompts: Sequence[tuple[int, ...]],
    capabilities: Capabilities,
    limits: LimitsConfig,
    *,
    request_id: str,
    seed: int,
    deadline_s: float,
) -> Plan:
    """The engine requests for `n` answers to every prompt.

    Answer i draws with seed + i, so that each is repeatable by itself. `seed` is used where
    the body names none; `deadline_s` is Unix time.

    Raises:
        RequestError: 400 for what exceeds a limit or what the engine cannot do.
    """
    check_num_choices(body, len(prompts), limits)
    for prompt in prompts:
        _check_prompt(prompt, capabilities, limits)
    num_logprobs = _num_logprobs(body, capabilities, limits)
    first_seed = (body.seed if body.seed is not None else seed) % _SEEDS
    requests: list[Request] = []
    for prompt in prompts:
        for _ in range(body.n or 1):
            index = len(requests)
            requests.append(
                Request(
                    id=f"{request_id}-{index}",
                    prompt_ids=prompt,
                    sampling=_sampling(
                        body,
                        limits,
                        max_tokens=_max_tokens(body, len(prompt), capabilities, limits),
                        num_logprobs=num_logprobs,
                        seed=(first_seed + index) % _SEEDS,
                    ),
                    deadline_s=deadline_s,
                )
            )
    return Plan(tuple(requests), sum(len(prompt) for prompt in prompts))


def check_num_choices(body: Generation, num_prompts: int, limits: LimitsConfig) -> None:
    """See that not too many answers are asked for; before any work on the prompts.

    Raises:
        RequestError: they are too many.
    """
    n = body.n or 1
    if n * num_prompts > limits.max_choices:
        raise _bad(
            f"{num_prompts} prompts times n={n} are more than {limits.max_choices} answers", "n"
        )


def prompt_limit(capabilities: Capabilities, limits: LimitsConfig) -> int:
    """The most tokens a prompt may have: one fewer than the context holds, for the answer."""
    limit = capabilities.max_context_tokens - 1
    return limit if limits.max_prompt_tokens is None else min(limit, limits.max_prompt_tokens)


def _check_prompt(
    prompt: tuple[int, ...], capabilities: Capabilities, limits: LimitsConfig
) -> None:
    if not prompt:
        raise _bad("the prompt has no tokens", "prompt")
    if min(prompt) < 0 or max(prompt) >= capabilities.vocab_size:
        raise _bad(f"token ids are 0 to {capabilities.vocab_size - 1}", "prompt")
    if len(prompt) > prompt_limit(capabilities, limits):
        most = prompt_limit(capabilities, limits)
        raise _too_long(f"at most {most} tokens of prompt fit, and this has {len(prompt)}")


def _max_tokens(
    body: Generation, num_prompt_tokens: int, capabilities: Capabilities, limits: LimitsConfig
) -> int:
    asked, param = body.max_tokens, "max_tokens"
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if asked not in (None, body.max_completion_tokens):
            raise _bad("max_tokens and max_completion_tokens differ", "max_completion_tokens")
        asked, param = body.max_completion_tokens, "max_completion_tokens"
    room = capabilities.max_context_tokens - num_prompt_tokens
    if asked is None:
        return min(limits.default_output_tokens, limits.max_output_tokens, room)
    if asked > limits.max_output_tokens:
        raise _bad(f"{param}={asked} is more than {limits.max_output_tokens}", param)
    if asked > room:
        raise _too_long(
            f"this model's maximum context length is {capabilities.max_context_tokens} tokens, "
            f"and {num_prompt_tokens} of prompt and {asked} of answer were asked for "
            f"({num_prompt_tokens + asked} in all)"
        )
    return asked


def _num_logprobs(body: Generation, capabilities: Capabilities, limits: LimitsConfig) -> int | None:
    wanted, param = None, "logprobs"
    if isinstance(body, CompletionBody):
        wanted = body.logprobs
        if wanted is not None and body.echo:
            raise _bad("logprobs of the prompt (echo with logprobs) are not supported", "echo")
    elif isinstance(body, ChatBody):
        if body.logprobs:
            wanted, param = body.top_logprobs or 0, "top_logprobs"
        elif body.top_logprobs is not None:
            raise _bad("top_logprobs needs logprobs: true", "top_logprobs")
    if wanted is None:
        return None
    if wanted > limits.max_logprobs:
        raise _bad(f"{param}={wanted} is more than {limits.max_logprobs}", param)
    if "logprobs" not in capabilities.features:
        raise _bad(f"the engine {capabilities.engine!r} gives no logprobs", param)
    return wanted


def _sampling(
    body: Generation, limits: LimitsConfig, *, max_tokens: int, num_logprobs: int | None, seed: int
) -> Sampling:
    if len(body.stop) > limits.max_stop:
        raise _bad(f"{len(body.stop)} stop strings are more than {limits.max_stop}", "stop")
    return Sampling(
        max_tokens=max_tokens,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(0, body.top_k or 0),
        seed=seed,
        stop=body.stop,
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        num_logprobs=num_logprobs,
        ignore_eos=bool(body.ignore_eos),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _bad(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid-parameter", param=param)


def _too_long(message: str) -> RequestError:
    return RequestError(message, code="context-length-exceeded", param="prompt")
