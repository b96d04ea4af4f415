"""A real, small engine whose tokens are a function of (seed, position); no model behind it.

Registered by import path (`RAYLM` entry points need an installed package, so tests add it to the
registry of engines in the process that needs it, or use `load_fake` directly).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.encode import Classification, ClassifyRequest, Embedding, EmbedRequest
from raylm.engine.protocol import Capabilities, Chunk, Request, Stats, TokenLogprob
from raylm.errors import RaylmError, RequestError

MAX_CONTEXT = 128


def token_at(seed: int, position: int, vocab_size: int) -> int:
    """The token that every replica emits there."""
    return random.Random(seed * 1_000_003 + position).randrange(3, vocab_size)


def scored(request: Request) -> tuple[TokenLogprob | None, ...]:
    """What every replica says of a prompt, once: token i has the logprob -i."""
    num_top = request.sampling.num_prompt_logprobs
    if num_top is None or request.emitted_ids:
        return ()
    top = tuple((i, -0.25 - i) for i in range(3, 3 + num_top))
    known = [TokenLogprob(t, -float(i), top) for i, t in enumerate(request.prompt_ids)]
    return (None, *known[1:])


@dataclass
class FakeEngine:
    """Emits one token per step; `fail_at` breaks an answer at that position."""

    tokenizer: Tokenizer
    step_s: float = 0.0
    fail_at: int | None = None
    max_running: int = 64
    running: dict[str, Request] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)
    generated: int = 0
    broken: bool = False
    num_cached_tokens: int | None = None
    scores_prompts: bool = False

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        if len(self.running) >= self.max_running:
            raise RequestError("queue full", code="overloaded", status=503, retry_after_s=3)
        self.seen.append(request)
        self.running[request.id] = request
        sampling, text = request.sampling, ""
        try:
            for position in range(len(request.emitted_ids), sampling.max_tokens):
                await asyncio.sleep(self.step_s)
                if position == self.fail_at:
                    raise RuntimeError("the fake engine broke")
                token = token_at(sampling.seed, position, self.vocab_size)
                piece = self.tokenizer.decode([token])
                self.generated += 1
                text += piece
                stop = next((s for s in sampling.stop if s in text), None)
                last = position == sampling.max_tokens - 1
                logprobs = ()
                if sampling.num_logprobs is not None:
                    top = tuple((i, -1.0 - i) for i in range(3, 3 + sampling.num_logprobs))
                    logprobs = (TokenLogprob(token, -0.5, top),)
                yield Chunk(
                    request.id,
                    position,
                    (token,),
                    "" if stop else piece,
                    logprobs,
                    "stop" if stop else "length" if last else None,
                    None if position else self.num_cached_tokens,
                    () if position else scored(request),
                )
                if stop:
                    return
        except GeneratorExit:
            self.cancelled.append(request.id)
            raise
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        finally:
            self.running.pop(request.id, None)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    async def embed(self, request: EmbedRequest) -> Embedding:
        raise NotImplementedError  # the gateway asks for what `capabilities` names

    async def classify(self, request: ClassifyRequest) -> Classification:
        raise NotImplementedError

    def cancel(self, request_id: str) -> None:
        self.running.pop(request_id, None)

    def stats(self) -> Stats:
        return Stats(
            num_running=len(self.running),
            generated_tokens_total=self.generated,
            cancelled_total=len(self.cancelled),
        )

    def capabilities(self) -> Capabilities:
        features = frozenset({"generate", "logprobs", "continue", "cancel"})
        if self.scores_prompts:
            features |= {"prompt_logprobs"}
        return Capabilities("fake", MAX_CONTEXT, self.vocab_size, (2,), features)

    def health(self) -> None:
        if self.broken:
            raise RaylmError("the fake engine is broken", code="engine-broken")

    def close(self) -> None:
        self.broken = True


def load_fake(
    model_dir: Path, config: EngineConfig, *, cache_root: Path, digest: str
) -> FakeEngine:
    """What the registry of engines would name."""
    return FakeEngine(Tokenizer.from_file(str(model_dir / "tokenizer.json")), step_s=0.01)
