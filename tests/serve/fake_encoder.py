"""An engine that embeds and classifies, without a model: results are functions of the tokens."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from raylm.engine.encode import Classification, ClassifyRequest, Embedding, EmbedRequest
from raylm.engine.protocol import Capabilities
from tests.serve.fake_engine import FakeEngine

SIZE = 4
LABELS = ("even", "odd")


def vector(ids: tuple[int, ...]) -> np.ndarray:
    """What every replica makes of a text."""
    return np.array([len(ids), ids[0], ids[-1], 1 / 3], np.float32)


@dataclass
class FakeEncoder(FakeEngine):
    """`fail_at` breaks on texts of so many tokens."""

    features: frozenset[str] = frozenset({"embed", "classify", "cancel"})
    end_of_input_id: int | None = None
    texts: list[EmbedRequest | ClassifyRequest] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def embed(self, request: EmbedRequest) -> Embedding:
        await self._work(request)
        return Embedding(request.id, vector(request.prompt_ids), len(request.prompt_ids))

    async def classify(self, request: ClassifyRequest) -> Classification:
        await self._work(request)
        odd = len(request.prompt_ids) % 2 * 0.5 + 0.25
        return Classification(request.id, LABELS, (1 - odd, odd), len(request.prompt_ids))

    async def _work(self, request: EmbedRequest | ClassifyRequest) -> None:
        self.texts.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.step_s)
            if len(request.prompt_ids) == self.fail_at:
                raise RuntimeError("the fake encoder broke")
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        finally:
            self.at_once -= 1

    def capabilities(self) -> Capabilities:
        return Capabilities(
            "fake",
            16,
            self.vocab_size,
            (2,),
            self.features,
            end_of_input_id=self.end_of_input_id,
            poolings=("mean", "cls"),
            embedding_size=SIZE,
        )
