"""Texts in batches through a model without an answer: embeddings and classes.

Rows are padded on the right and masked, so that a text's result is the same in any company.
"""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from raylm.engine.encode import (
    Classification,
    ClassifyRequest,
    Embedding,
    EmbedRequest,
    Encoded,
)
from raylm.engine.job import EncodeJob
from raylm.engine.runner import StepResult, deadline_error
from raylm.engine.torch.batches import BatchLimits, alike
from raylm.engine.torch.padding import right_padded


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model as what embeds and classifies."""

    model: Any
    trunk: Any
    """What makes the last hidden states: all of a model but its head, or its encoder."""
    pooling: str
    """Where a request names none."""
    pad_id: int
    labels: tuple[str, ...] = ()
    """Of a classifier, else empty."""
    one_label: bool = True
    """A text has exactly one of them."""

    @torch.inference_mode()
    def embed(self, requests: Row[EmbedRequest]) -> list[Embedding]:
        """A vector for each text."""
        ids, mask = right_padded([r.prompt_ids for r in requests], self.pad_id)
        states = self._states(ids, mask).float()
        found = []
        for row, request in enumerate(requests):
            vector = pool(states[row, : len(request.prompt_ids)], request.pooling or self.pooling)
            if request.normalize:
                vector = functional.normalize(vector, dim=0)
            # A copy: a view of the states would keep those of the whole batch.
            found.append(Embedding(request.id, vector.numpy().copy(), len(request.prompt_ids)))
        return found

    @torch.inference_mode()
    def classify(self, requests: Row[ClassifyRequest]) -> list[Classification]:
        """The classes of each text."""
        ids, mask = right_padded([r.prompt_ids for r in requests], self.pad_id)
        logits = self._class_logits(ids, mask).float()
        probabilities = logits.softmax(1) if self.one_label else logits.sigmoid()
        return [
            Classification(request.id, self.labels, tuple(row), len(request.prompt_ids))
            for request, row in zip(requests, probabilities.tolist(), strict=True)
        ]

    def _states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Last hidden states [rows, width, size]."""
        states: torch.Tensor = self.trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    def _class_logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits [rows, classes]."""
        if not hasattr(self.model, "score"):
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
            return logits
        # Decoders read the class off the last token, which transformers looks for by the
        # padding token: not there in some models, and in others also the end of a text.
        states = self._states(ids, mask)
        last: torch.Tensor = states[torch.arange(len(ids)), mask.sum(1) - 1]
        scores: torch.Tensor = self.model.score(last)
        return scores


def pool(states: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector [size] of a text's last hidden states [tokens, size]."""
    if pooling == "mean":
        return states.mean(0)
    return states[0] if pooling == "cls" else states[-1]


class EncodeBatches:
    """Texts that wait for an encoder, and its batches; every step is one forward pass."""

    def __init__(self, encoder: Encoder, limits: BatchLimits) -> None:
        self._encoder = encoder
        self._limits = limits
        self._waiting: list[EncodeJob] = []
        self._running: list[EncodeJob] = []
        self._suspects: list[list[EncodeJob]] = []
        """Parts of batches that failed, each to be tried by itself."""

    @property
    def num_running(self) -> int:
        """Texts of the batch that is in the model."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Texts for later batches."""
        return len(self._waiting) + sum(len(jobs) for jobs in self._suspects)

    def add(self, job: EncodeJob) -> None:
        """Queue a text behind those of its priority."""
        self._waiting.append(job)
        self._waiting.sort(key=lambda waiting: -waiting.request.priority)  # a stable sort

    def cancel(self, request_id: str) -> None:
        """Take a text out of the queue."""
        self._waiting = [job for job in self._waiting if job.id != request_id]
        others = ([job for job in jobs if job.id != request_id] for jobs in self._suspects)
        self._suspects = [jobs for jobs in others if jobs]

    def step(self, now_s: float) -> StepResult:
        """Encode the first text that waits, with those like it."""
        late = [job for job in self._waiting if (job.request.deadline_s or now_s) < now_s]
        self._waiting = [job for job in self._waiting if job not in late]
        if late:  # told before a step can fail
            return StepResult(failed=[(job.id, deadline_error(job.id)) for job in late])
        self._running = self._suspects.pop(0) if self._suspects else self._next()
        encoded = self._encode([job.request for job in self._running])
        self._running = []
        return StepResult(encoded=encoded)

    def abandon(self) -> list[str] | None:
        """Try the halves of the batch whose step raised apart, until the culprit is alone."""
        jobs, self._running = self._running, []
        half = len(jobs) // 2
        if not half:
            return [job.id for job in jobs]
        self._suspects[:0] = [jobs[:half], jobs[half:]]
        return None

    def _next(self) -> list[EncodeJob]:
        """Texts of similar length of which all are to be embedded, or all to be classified."""
        if not self._waiting:
            return []
        kind = type(self._waiting[0].request)
        same = [job for job in self._waiting if isinstance(job.request, kind)]
        lengths = [(len(job.request.prompt_ids),) * 2 for job in same]
        chosen = [same[index] for index in alike(lengths, self._limits)]
        self._waiting = [job for job in self._waiting if job not in chosen]
        return chosen

    def _encode(self, requests: Row[EmbedRequest | ClassifyRequest]) -> list[Encoded]:
        to_embed = [request for request in requests if isinstance(request, EmbedRequest)]
        to_classify = [request for request in requests if isinstance(request, ClassifyRequest)]
        encoded: list[Encoded] = []
        if to_embed:
            encoded += self._encoder.embed(to_embed)
        if to_classify:
            encoded += self._encoder.classify(to_classify)
        return encoded
