"""Answer: what engines have sent so far for one call, choice by choice.

Token ids are kept apart from text, and positions are checked: a gap or a repeat between a
chunk and the one before would be a defect of an engine or of a continuation, and ends the
answer as an error instead of reaching the client as text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from raylm.engine.protocol import Chunk, FinishReason, TokenLogprob
from raylm.serve.failure import engine_failed
from raylm.serve.plan import Plan

Items = list[tuple[int, Chunk]]
"""Chunks that came together, each with the index of its choice."""
Source = AsyncGenerator[Items, None]
"""Where the chunks of a call come from; it must be closed."""
Usage = dict[str, int | dict[str, int]]
"""OpenAI's `usage` object."""


@dataclass(slots=True)
class Choice:
    """One answer in the making."""

    index: int
    emitted_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: FinishReason | None = None
    num_cached_tokens: int | None = None
    """Of the prompt, as the engine that began the answer told."""

    def accept(self, chunk: Chunk) -> None:
        """Take the next chunk.

        Raises:
            RequestError: 500, the chunk does not follow the one before, or the engine gave up.
        """
        out_of_step = chunk.position != len(self.emitted_ids) or self.finish_reason is not None
        if out_of_step or chunk.finish_reason == "cancelled":
            raise engine_failed(chunk.request_id)
        self.emitted_ids += chunk.token_ids
        self.text.append(chunk.text)
        self.logprobs += chunk.logprobs
        self.prompt_logprobs += chunk.prompt_logprobs
        self.finish_reason = chunk.finish_reason
        if self.num_cached_tokens is None:
            self.num_cached_tokens = chunk.num_cached_tokens


@dataclass(slots=True)
class Answer:
    """All choices of one call."""

    plan: Plan
    choices: list[Choice]

    @classmethod
    def to(cls, plan: Plan) -> Answer:
        """An empty answer."""
        return cls(plan, [Choice(i) for i in range(len(plan.requests))])

    async def read(self, source: Source) -> AsyncGenerator[list[tuple[Choice, Chunk]], None]:
        """Take the chunks; yield them, already accepted, as they come.

        Raises:
            RequestError: refused, or the engine failed or stopped short.
        """
        try:
            async for items in source:
                taken = []
                for index, chunk in items:
                    if self.plan.is_scoring:
                        chunk = _without_answer(chunk)
                    self.choices[index].accept(chunk)
                    taken.append((self.choices[index], chunk))
                yield taken
        finally:
            await source.aclose()
        for choice, request in zip(self.choices, self.plan.requests, strict=True):
            if choice.finish_reason is None:
                raise engine_failed(request.id)

    def usage(self) -> Usage:
        """Token counts as OpenAI reports them."""
        prompt, completion = self.plan.num_prompt_tokens, self.num_generated_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompts that were cached; of several answers to one, the first's."""
        firsts = self.choices[:: self.plan.num_answers]
        return sum(choice.num_cached_tokens or 0 for choice in firsts)

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(choice.emitted_ids) for choice in self.choices)


def _without_answer(chunk: Chunk) -> Chunk:
    """The chunk of a call that wants its prompt's logprobs alone: engines make a token at least."""
    reason: FinishReason | None = "length" if chunk.finish_reason == "stop" else chunk.finish_reason
    return replace(chunk, position=0, token_ids=(), text="", logprobs=(), finish_reason=reason)
