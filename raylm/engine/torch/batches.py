"""Answers in batches over one transformers model: plain dynamic batching.

What waits is taken as one batch of prompts of similar length and brought to its end together;
rows that finish leave the batch at once, newcomers join when it is empty. Slower than the
OpenVINO engine, and correct for whatever transformers can generate with; sampling, text and
limits are the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raylm.engine.answer import Answer
from raylm.engine.protocol import Chunk
from raylm.engine.runner import StepResult, deadline_error, taken
from raylm.engine.sampler import Sampled, sample

Floats = NDArray[np.floating[Any]]

_FREE_PADDING_TOKENS = 32  # so few cost less than a batch of their own


class Rows(Protocol):
    """What a model remembers of the answers of a batch, one row each."""

    def logits(self) -> Floats:
        """Run the model on what was fed last: logits of the next tokens [rows, vocab], f32."""
        ...

    def feed(self, token_ids: list[int]) -> None:
        """Give each row its next token."""
        ...

    def keep(self, rows: list[int]) -> None:
        """Forget the rows that are not named."""
        ...


@dataclass(slots=True)
class _Batch:
    """Answers that run together; row i is answers[i]'s."""

    answers: list[Answer]
    rows: Rows


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one batch may hold; all rows are as wide as the widest."""

    max_rows: int
    max_tokens: int
    """Rows times width, at the beginning."""
    max_cached_tokens: int = 2**62
    """Rows times width, at the end."""


class AnswerBatches:
    """Batches of answers; `begin` makes the rows of a new one."""

    def __init__(self, begin: Callable[[Row[Answer]], Rows], limits: BatchLimits) -> None:
        self._begin_rows = begin
        self._limits = limits
        self._waiting: list[Answer] = []
        self._batch: _Batch | None = None

    @property
    def num_running(self) -> int:
        """Rows of the current batch."""
        return len(self._batch.answers) if self._batch else 0

    @property
    def num_waiting(self) -> int:
        """Answers for later batches."""
        return len(self._waiting)

    def add(self, answer: Answer) -> None:
        """Queue an answer behind those of its priority."""
        self._waiting.append(answer)
        self._waiting.sort(key=lambda waiting: -waiting.request.priority)  # a stable sort

    def cancel(self, request_id: str) -> None:
        """Take an answer out of the queue or the batch."""
        self._waiting = [answer for answer in self._waiting if answer.id != request_id]
        if self._batch is not None:
            self._keep([answer.id != request_id for answer in self._batch.answers])

    def step(self, now_s: float) -> StepResult:
        """One token for each row; a new batch is begun when there is none."""
        if self._batch is None:
            late = [a for a in self._waiting if (a.request.deadline_s or now_s) < now_s]
            self._waiting = [answer for answer in self._waiting if answer not in late]
            if late:  # told before a step can fail
                return StepResult(failed=[(a.id, deadline_error(a.id)) for a in late])
            self._begin()
        if self._batch is None:
            return StepResult()
        drawn = sample(self._batch.rows.logits(), [answer.row() for answer in self._batch.answers])
        result = StepResult()
        next_ids, stays = [], []
        for answer, sampled in zip(self._batch.answers, drawn, strict=True):
            item = taken(answer, sampled)
            if isinstance(item, Chunk):
                result.chunks.append(item)
            else:
                result.failed.append((answer.id, item))
            stays.append(isinstance(item, Chunk) and item.finish_reason is None)
            next_ids.append(sampled.token_id if isinstance(sampled, Sampled) else 0)
        self._batch.rows.feed(next_ids)
        self._keep(stays)
        return result

    def abandon(self) -> list[str]:
        """Forget the batch whose step raised."""
        lost = [answer.id for answer in self._batch.answers] if self._batch else []
        self._batch = None
        return lost

    def _begin(self) -> None:
        """Take those that go well with the first: in length, and in the cache at the end."""
        lengths = [(len(answer.token_ids), _total(answer)) for answer in self._waiting]
        chosen = alike(lengths, self._limits)
        if not chosen:
            return
        answers = [self._waiting[index] for index in chosen]
        rows = self._begin_rows(answers)  # if it raises, they still wait
        self._waiting = [answer for answer in self._waiting if answer not in answers]
        self._batch = _Batch(answers, rows)

    def _keep(self, stays: Row[bool]) -> None:
        """Drop the rows that do not stay; an empty batch makes room for the next one."""
        batch = self._batch
        if batch is None or all(stays):
            return
        if not any(stays):
            self._batch = None
            return
        rows = [row for row, stay in enumerate(stays) if stay]
        batch.answers = [batch.answers[row] for row in rows]
        batch.rows.keep(rows)


def alike(lengths: Row[tuple[int, int]], limits: BatchLimits) -> list[int]:
    """Places of those that make up the next batch, of (tokens now, tokens at most) each.

    The first is always among them, so that nobody waits for ever; the others are those after
    it that fit, and with which no row is more padding than text but for a few tokens, so that
    the work follows the lengths of the texts and not the longest that ever comes.
    """
    chosen: list[int] = []
    narrowest, widest, longest = 2**62, 0, 0
    for index, (now, at_most) in enumerate(lengths):
        if len(chosen) == limits.max_rows:
            break
        rows, narrow = len(chosen) + 1, min(narrowest, now)
        wide, long = max(widest, now), max(longest, at_most)
        fits = rows * wide <= limits.max_tokens and rows * long <= limits.max_cached_tokens
        if chosen and not (fits and wide <= 2 * narrow + _FREE_PADDING_TOKENS):
            continue
        chosen.append(index)
        narrowest, widest, longest = narrow, wide, long
    return chosen


def _total(answer: Answer) -> int:
    return len(answer.request.prompt_ids) + answer.max_tokens
