"""The draw of one answer inside vLLM: raylm's own sampler, keyed by seed and position.

vLLM draws from a generator that each request carries along, so that an answer continued by
another replica would go on differently; and its penalties take the tokens that a continued answer
starts with for part of the prompt. So whatever is not plainly the likeliest token is drawn by the
sampler of all other engines. This file knows neither torch nor vLLM: an order is plain values, for
it crosses to the process where vLLM samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from raylm.engine.protocol import Capabilities, Request, Sampling
from raylm.engine.sampler import Bias, Penalties, Row

ORDER = "raylm"
"""The key of an order among vLLM's `extra_args`."""

_NAMES = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "min_p",
    "min_tokens",
    "logit_bias",
)
assert {field.name for field in fields(Sampling)} >= set(_NAMES)


def order(request: Request, capabilities: Capabilities) -> dict[str, Any] | None:
    """What a draw needs to know, or None where vLLM's own likeliest token is the one."""
    sampling = request.sampling
    is_greedy = sampling.temperature == 0.0 or sampling.top_k == 1
    if is_greedy and not (
        sampling.logit_bias or _penalized(sampling) or _banned_ids(sampling, capabilities)
    ):
        return None
    return {
        "num_prompt": len(request.prompt_ids),
        "vocab_size": capabilities.vocab_size,
        "banned_ids": list(_banned_ids(sampling, capabilities)),
        "sampling": {name: getattr(sampling, name) for name in _NAMES},
    }


class Draw:
    """One answer as the sampler must know it, step by step."""

    def __init__(self, order: Mapping[str, Any], token_ids: Sequence[int]) -> None:
        """`token_ids`: the prompt, and what of the answer was emitted by others before."""
        given = dict(order["sampling"])
        given["logit_bias"] = tuple((int(id), float(value)) for id, value in given["logit_bias"])
        self._sampling = Sampling(**given)
        prompt_ids = token_ids[: order["num_prompt"]]
        emitted_ids = token_ids[order["num_prompt"] :]
        self._num_before = len(emitted_ids)
        self._num_noted = 0
        self._banned_ids = tuple(order["banned_ids"])
        self._bias = Bias(self._sampling.logit_bias) if self._sampling.logit_bias else None
        self._penalties = None
        if _penalized(self._sampling):
            self._penalties = Penalties(order["vocab_size"], prompt_ids, emitted_ids)

    def row(self, output_ids: Sequence[int]) -> Row:
        """How to choose the next token after these, which vLLM has made here so far."""
        if self._penalties is not None:
            for token_id in output_ids[self._num_noted :]:
                self._penalties.add(token_id)
            self._num_noted = len(output_ids)
        position = self._num_before + len(output_ids)
        banned = self._banned_ids if position < self._sampling.min_tokens else ()
        return Row(self._sampling, position, self._penalties, self._bias, banned)


def _penalized(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
    )


def _banned_ids(sampling: Sampling, capabilities: Capabilities) -> tuple[int, ...]:
    """End tokens that may not come before `min_tokens`; an ignored one may come at any time."""
    if sampling.ignore_eos or not sampling.min_tokens:
        return ()
    return capabilities.eos_token_ids
