"""Answer: what engines have sent so far for one call, choice by choice.

Token ids are kept apart from text, and positions are checked: a gap or a repeat between a
chunk and the one before would be a defect of an engine or of a continuation, and ends the
answer as an error instead of reaching the client as text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from raylm.engine.protocol import Chunk, FinishReason, TokenLogprob
from raylm.serve.backend import Backend
from raylm.serve.failure import engine_failed
from raylm.serve.gather import merged
from raylm.serve.plan import Plan


@dataclass(slots=True)
class Choice:
    """One answer in the making."""

    index: int
    emitted_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None

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
        self.finish_reason = chunk.finish_reason


@dataclass(slots=True)
class Answer:
    """All choices of one call."""

    plan: Plan
    choices: list[Choice]

    @classmethod
    def to(cls, plan: Plan) -> Answer:
        """An empty answer."""
        return cls(plan, [Choice(i) for i in range(len(plan.requests))])

    async def read(self, backend: Backend) -> AsyncGenerator[list[tuple[Choice, Chunk]], None]:
        """Run the requests; yield the chunks, already accepted, as they come.

        Raises:
            RequestError: refused, or the engine failed or stopped short.
        """
        streams = [backend.generate(request) for request in self.plan.requests]
        source = merged(streams)
        try:
            async for items in source:
                taken = []
                for index, chunk in items:
                    self.choices[index].accept(chunk)
                    taken.append((self.choices[index], chunk))
                yield taken
        finally:
            await source.aclose()
        for choice, request in zip(self.choices, self.plan.requests, strict=True):
            if choice.finish_reason is None:
                raise engine_failed(request.id)

    async def collect(self, backend: Backend) -> None:
        """Run the requests to their end."""
        async for _ in self.read(backend):
            pass

    def usage(self) -> dict[str, int]:
        """Token counts as OpenAI reports them."""
        prompt, completion = self.plan.num_prompt_tokens, self.num_generated_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(choice.emitted_ids) for choice in self.choices)
