"""A runner without a model: its logits are a function of the position, drawn from a seed."""

from __future__ import annotations

import numpy as np

from raylm.engine.answer import Answer
from raylm.engine.protocol import Chunk
from raylm.engine.runner import StepResult, taken
from raylm.engine.sampler import sample


class RandomRunner:
    """Samples as the engines do, from logits that know nothing of what is allowed."""

    num_blocks = num_free_blocks = num_waiting = num_queried_tokens = num_found_tokens = 0
    num_guessed_tokens = num_confirmed_tokens = 0

    def __init__(self, vocab_size: int, *, seed: int = 0, likely_ids: tuple[int, ...] = ()) -> None:
        self._vocab_size = vocab_size
        self._seed = seed
        self._likely_ids = list(likely_ids)
        self._answers: dict[str, Answer] = {}

    @property
    def num_running(self) -> int:
        return len(self._answers)

    def add(self, answer: Answer) -> None:
        self._answers[answer.id] = answer

    def cancel(self, request_id: str) -> None:
        del self._answers[request_id]

    def step(self, now_s: float) -> StepResult:
        answers = list(self._answers.values())
        logits = np.stack([self._logits(answer.num_emitted) for answer in answers])
        drawn = sample(logits, [answer.row() for answer in answers])
        result = StepResult()
        for answer, sampled in zip(answers, drawn, strict=True):
            item = taken(answer, sampled)
            if isinstance(item, Chunk):
                result.chunks.append(item)
            else:
                result.failed.append((answer.id, item))
            if not isinstance(item, Chunk) or item.finish_reason is not None:
                del self._answers[answer.id]
        return result

    def abandon(self) -> list[str]:
        lost = list(self._answers)
        self._answers.clear()
        return lost

    def close(self) -> None:
        self._answers.clear()

    def _logits(self, position: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, position))
        logits = rng.normal(0, 2, self._vocab_size).astype(np.float32)
        logits[self._likely_ids] += 4.0
        return logits
