"""Engines in this process for structured answers: one that draws at random, one with a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tokenizers import Tokenizer

from raylm.config.engine import EngineConfig
from raylm.engine.local import LocalEngine
from raylm.engine.protocol import Capabilities, Chunk, Request, TokenLogprob
from tests.engine.random_runner import RandomRunner
from tests.serve.fake_engine import FakeEngine


def random_engine(tokenizer: Tokenizer, seed: int = 0) -> LocalEngine:
    """The real engine's code over logits that know nothing of what is asked for."""
    vocab_size = tokenizer.get_vocab_size()
    likely = tuple(tokenizer.token_to_id(sign) for sign in '"}],')
    runner = RandomRunner(vocab_size, seed=seed, likely_ids=likely)
    capabilities = Capabilities(
        "random", 4096, vocab_size, (2,), frozenset({"generate", "logprobs"})
    )
    return LocalEngine(runner, tokenizer, capabilities, EngineConfig())


@contextmanager
def closing(engine: LocalEngine) -> Iterator[LocalEngine]:
    """Stop its thread at the end."""
    try:
        yield engine
    finally:
        engine.close()


@dataclass
class ScriptedEngine(FakeEngine):
    """Answers with the next text of `script`, a few characters a chunk."""

    script: list[str] = field(default_factory=list)
    step_chars: int = 3
    scores: bool = False

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), max_context_tokens=4096)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.seen.append(request)
        text = self.script.pop(0)
        parts = [text[i : i + self.step_chars] for i in range(0, len(text), self.step_chars)]
        for position, part in enumerate(parts):
            logprobs = (TokenLogprob(5, -0.5),) if self.scores else ()
            yield Chunk(request.id, position, (5,), part, logprobs)
        yield Chunk(request.id, len(parts), (2,), finish_reason="stop")
