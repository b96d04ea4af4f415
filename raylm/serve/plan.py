"""Plan: what one HTTP call asks of an engine, worked out before anything runs.

Pure: the body, the tokenised prompts and the limits in, engine requests out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylm.config.serve import LimitsConfig
from raylm.engine.admission import check_feature
from raylm.engine.protocol import Capabilities, Grammar, Request, Sampling
from raylm.errors import RequestError
from raylm.serve.wire import ChatBody, CompletionBody, Generation

_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Plan:
    """The answers to make: one engine request each, numbered by choice."""

    requests: tuple[Request, ...]
    num_prompt_tokens: int
    """Each prompt counted once, however many answers it gets."""
    num_answers: int = 1
    """Answers to each prompt; their requests stand side by side."""
    is_scoring: bool = False
    """Of the answers nothing is wanted: only what comes with the prompt."""
    defaults: tuple[tuple[str, int], ...] = ()
    """What the body left open, and what it is."""


def plan(
    body: Generation,
    prompts: Sequence[tuple[int, ...]],
    grammar: Grammar | None,
    capabilities: Capabilities,
    limits: LimitsConfig,
    *,
    request_id: str,
    seed: int,
    deadline_s: float,
    priority: int = 0,
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
    _check_steering(body, grammar, capabilities, limits)
    num_logprobs = _num_logprobs(body, capabilities, limits)
    num_of_prompt = _num_prompt_logprobs(body, capabilities, limits)
    rooms = [_max_tokens(body, len(prompt), capabilities, limits) for prompt in prompts]
    is_scoring = _asked_tokens(body)[0] == 0
    if is_scoring and num_of_prompt is None:
        raise _bad(
            "max_tokens=0 leaves nothing but the prompt's logprobs, and those were not asked for "
            "(echo with logprobs, or prompt_logprobs)",
            "max_tokens",
        )
    first_seed = (body.seed if body.seed is not None else seed) % _SEEDS
    requests: list[Request] = []
    for prompt, max_tokens in zip(prompts, rooms, strict=True):
        for _ in range(body.n or 1):
            index = len(requests)
            requests.append(
                Request(
                    id=f"{request_id}-{index}",
                    prompt_ids=prompt,
                    sampling=_sampling(
                        body,
                        grammar,
                        limits,
                        max_tokens=max_tokens,
                        num_logprobs=num_logprobs,
                        num_prompt_logprobs=num_of_prompt,
                        seed=(first_seed + index) % _SEEDS,
                    ),
                    deadline_s=deadline_s,
                    priority=priority,
                )
            )
    return Plan(
        tuple(requests),
        sum(len(prompt) for prompt in prompts),
        body.n or 1,
        is_scoring,
        _defaults(body, min(rooms), first_seed),
    )


def _defaults(body: Generation, max_tokens: int, seed: int) -> tuple[tuple[str, int], ...]:
    found = []
    if _asked_tokens(body)[0] is None:
        found.append(("max_tokens", max_tokens))
    if body.seed is None:
        found.append(("seed", seed))
    return tuple(found)


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
    """The most tokens a prompt may have that still leaves room for the answer.

    Raises:
        RequestError: the model makes no answers.
    """
    check_feature("generate", capabilities)
    limit = capabilities.max_prompt_tokens
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
    asked, param = _asked_tokens(body)
    room = capabilities.answer_room(num_prompt_tokens)
    if asked is None:
        return min(limits.default_output_tokens, limits.max_output_tokens, room)
    if asked > limits.max_output_tokens:
        raise _bad(f"{param}={asked} is more than {limits.max_output_tokens}", param)
    if asked > room and capabilities.max_answer_tokens is not None:
        raise _too_long(f"this model's answers have {room} tokens at most", param)
    if asked > room:
        raise _too_long(
            f"this model's maximum context length is {capabilities.max_context_tokens} tokens, "
            f"and {num_prompt_tokens} of prompt and {asked} of answer were asked for "
            f"({num_prompt_tokens + asked} in all)"
        )
    return asked


def _asked_tokens(body: Generation) -> tuple[int | None, str]:
    """How long an answer may be, and the field that says so."""
    if not isinstance(body, ChatBody) or body.max_completion_tokens is None:
        return body.max_tokens, "max_tokens"
    if body.max_tokens not in (None, body.max_completion_tokens):
        raise _bad("max_tokens and max_completion_tokens differ", "max_completion_tokens")
    return body.max_completion_tokens, "max_completion_tokens"


def _check_steering(
    body: Generation, grammar: Grammar | None, capabilities: Capabilities, limits: LimitsConfig
) -> None:
    if len(body.logit_bias) > limits.max_logit_bias:
        raise _bad(
            f"{len(body.logit_bias)} biases are more than {limits.max_logit_bias}", "logit_bias"
        )
    for token_id, _ in body.logit_bias:
        if token_id >= capabilities.vocab_size:
            raise _bad(
                f"{token_id} is no token; ids are 0 to {capabilities.vocab_size - 1}", "logit_bias"
            )
    if grammar is not None and "grammar" not in capabilities.features:
        raise _bad(f"the engine {capabilities.engine!r} follows no grammar", grammar.param)


def _num_logprobs(body: Generation, capabilities: Capabilities, limits: LimitsConfig) -> int | None:
    wanted, param = None, "logprobs"
    if isinstance(body, CompletionBody):
        wanted = body.logprobs
    elif isinstance(body, ChatBody):
        if body.logprobs:
            wanted, param = body.top_logprobs or 0, "top_logprobs"
        elif body.top_logprobs is not None:
            raise _bad("top_logprobs needs logprobs: true", "top_logprobs")
    if wanted is not None:
        _check_num_logprobs(param, wanted, limits)
        if "logprobs" not in capabilities.features:
            raise _bad(f"the engine {capabilities.engine!r} gives no logprobs", param)
    return wanted


def _num_prompt_logprobs(
    body: Generation, capabilities: Capabilities, limits: LimitsConfig
) -> int | None:
    if not isinstance(body, CompletionBody):
        return None
    echoed = body.logprobs if body.echo else None
    if body.prompt_logprobs is not None:
        _check_num_logprobs("prompt_logprobs", body.prompt_logprobs, limits)
    wanted = max((k for k in (echoed, body.prompt_logprobs) if k is not None), default=None)
    if wanted is not None and "prompt_logprobs" not in capabilities.features:
        raise _bad(
            f"the engine {capabilities.engine!r} gives no logprobs of the prompt",
            "echo" if body.prompt_logprobs is None else "prompt_logprobs",
        )
    return wanted


def _check_num_logprobs(param: str, wanted: int, limits: LimitsConfig) -> None:
    if wanted > limits.max_logprobs:
        raise _bad(f"{param}={wanted} is more than {limits.max_logprobs}", param)


def _sampling(
    body: Generation,
    grammar: Grammar | None,
    limits: LimitsConfig,
    *,
    max_tokens: int,
    num_logprobs: int | None,
    num_prompt_logprobs: int | None,
    seed: int,
) -> Sampling:
    if len(body.stop) > limits.max_stop:
        raise _bad(f"{len(body.stop)} stop strings are more than {limits.max_stop}", "stop")
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise _bad(
            f"min_tokens={min_tokens} is more than the {max_tokens} that there may be", "min_tokens"
        )
    return Sampling(
        max_tokens=max(1, max_tokens),
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(0, body.top_k or 0),
        seed=seed,
        stop=body.stop,
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        ignore_eos=bool(body.ignore_eos),
        min_p=_or(body.min_p, 0.0),
        min_tokens=min_tokens,
        logit_bias=body.logit_bias,
        grammar=grammar,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _bad(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid-parameter", param=param)


def _too_long(message: str, param: str = "prompt") -> RequestError:
    return RequestError(message, code="context-length-exceeded", param=param)
