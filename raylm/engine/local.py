"""An engine in this process: the protocol's calls over a runner and its step loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.admission import admitted, check_request
from raylm.engine.answer import Answer
from raylm.engine.encode import (
    Classification,
    ClassifyRequest,
    Embedding,
    EmbedRequest,
    Encoded,
)
from raylm.engine.grammar import Grammars, has_grammars
from raylm.engine.job import EncodeJob
from raylm.engine.loop import StepLoop
from raylm.engine.protocol import Capabilities, Chunk, Request, Stats
from raylm.engine.runner import Runner
from raylm.errors import RaylmError


class LocalEngine:
    """Implements `Engine` for any runner."""

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        capabilities: Capabilities,
        config: EngineConfig,
        *,
        steers: bool = True,
    ) -> None:
        """`steers`: the runner samples by the answers' own rows, and so can follow a grammar."""
        self._tokenizer = tokenizer
        self._grammars: Grammars | None = None
        if steers and "generate" in capabilities.features and has_grammars():
            features = capabilities.features | {"grammar"}
            capabilities = replace(capabilities, features=features)
            self._grammars = Grammars(tokenizer, capabilities)
        self._capabilities = capabilities
        self._loop = StepLoop(
            runner,
            max_batch_size=config.max_batch_size,
            max_waiting=config.max_waiting,
            step_timeout_s=config.step_timeout_s,
        )

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Stream an answer; see `Engine.generate`."""
        check_request(request, self._capabilities)
        grammar, matcher = request.sampling.grammar, None
        if grammar is not None:
            assert self._grammars is not None, "admission lets no such request pass"
            self._loop.health()
            matcher = await self._grammars.matcher(grammar, request.emitted_ids)
        answer = Answer(request, self._tokenizer, self._capabilities, matcher)
        last = answer.ended()
        if last is not None:
            yield last
            return
        ticket = self._loop.submit(answer)
        done = False
        try:
            while not done:
                item = await ticket.queue.get()
                done = not isinstance(item, Chunk) or item.finish_reason is not None
                if isinstance(item, RaylmError):
                    raise item
                assert isinstance(item, Chunk)
                if done and answer.failure is not None:
                    raise answer.failure
                yield item
        finally:
            if not done:
                self._loop.cancel(request.id)

    async def embed(self, request: EmbedRequest) -> Embedding:
        """A text as a vector."""
        found = await self._encode(EncodeJob(admitted(request, self._capabilities)))
        assert isinstance(found, Embedding)
        return found

    async def classify(self, request: ClassifyRequest) -> Classification:
        """The probability of each class for a text."""
        found = await self._encode(EncodeJob(admitted(request, self._capabilities)))
        assert isinstance(found, Classification)
        return found

    async def _encode(self, job: EncodeJob) -> Encoded:
        ticket = self._loop.submit(job)
        try:
            item = await ticket.queue.get()
        except asyncio.CancelledError:
            self._loop.cancel(job.id)
            raise
        if isinstance(item, RaylmError):
            raise item
        assert not isinstance(item, Chunk)
        return item

    def cancel(self, request_id: str) -> None:
        """End a request; its slot is free within one step."""
        self._loop.cancel(request_id)

    def stats(self) -> Stats:
        """Counters and gauges."""
        return self._loop.stats()

    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return self._capabilities

    def health(self) -> None:
        """Raise a RaylmError if the engine cannot work."""
        self._loop.health()

    def close(self) -> None:
        """Stop the engine; what is running ends as cancelled."""
        if self._grammars is not None:
            self._grammars.close()
        self._loop.close()
