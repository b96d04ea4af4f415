"""The jobs of one transformers model: answers, embeddings and classes take turns."""

from __future__ import annotations

from raylm.engine.job import EncodeJob, Job
from raylm.engine.runner import StepResult
from raylm.engine.torch.batches import AnswerBatches
from raylm.engine.torch.pooled import EncodeBatches


class TorchRunner:
    """Implements `Runner`; every model encodes, and some answer."""

    num_blocks = 0
    num_free_blocks = 0
    num_queried_tokens = 0
    num_found_tokens = 0
    num_guessed_tokens = 0
    num_confirmed_tokens = 0

    def __init__(self, answers: AnswerBatches | None, encodings: EncodeBatches) -> None:
        self._answers = answers
        self._encodings: EncodeBatches | None = encodings
        self._stepped: AnswerBatches | EncodeBatches | None = None

    @property
    def num_running(self) -> int:
        """Rows of the batches in work."""
        return sum(part.num_running for part in self._parts)

    @property
    def num_waiting(self) -> int:
        """Jobs for later batches."""
        return sum(part.num_waiting for part in self._parts)

    def add(self, job: Job) -> None:
        """Queue a job behind those of its kind and priority."""
        if isinstance(job, EncodeJob):
            assert self._encodings is not None, "admission lets no such job pass"
            self._encodings.add(job)
        else:
            assert self._answers is not None, "admission lets no such job pass"
            self._answers.add(job)

    def cancel(self, request_id: str) -> None:
        """Take a job out of its queue or batch."""
        for part in self._parts:
            part.cancel(request_id)

    def step(self, now_s: float) -> StepResult:
        """A batch of texts encoded, or one token for each answer: in turns where both wait."""
        able = [part for part in self._parts if part.num_running or part.num_waiting]
        self._stepped = next((part for part in able if part is not self._stepped), able[0])
        return self._stepped.step(now_s)

    def abandon(self) -> list[str] | None:
        """Forget what the step that raised was about; the other part's batch goes on."""
        return self._stepped.abandon() if self._stepped is not None else []

    def close(self) -> None:
        """Free the model."""
        self._answers = self._encodings = self._stepped = None

    @property
    def _parts(self) -> list[AnswerBatches | EncodeBatches]:
        return [part for part in (self._answers, self._encodings) if part is not None]
