"""An engine in this process: the protocol's calls over a runner and its step loop."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.admission import check_request
from raylm.engine.answer import Answer
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
    ) -> None:
        self._tokenizer = tokenizer
        self._capabilities = capabilities
        self._loop = StepLoop(
            runner, max_batch_size=config.max_batch_size, max_waiting=config.max_waiting
        )

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Stream an answer; see `Engine.generate`."""
        check_request(request, self._capabilities)
        answer = Answer(request, self._tokenizer, self._capabilities)
        last = answer.ended()
        if last is not None:
            yield last
            return
        ticket = self._loop.submit(answer)
        done = False
        try:
            while not done:
                item = await ticket.queue.get()
                done = isinstance(item, RaylmError) or item.finish_reason is not None
                if isinstance(item, RaylmError):
                    raise item
                yield item
        finally:
            if not done:
                self._loop.cancel(request.id)

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
        self._loop.close()
