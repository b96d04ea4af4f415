"""Guesses of a small model with the same vocabulary, beside the one that is served.

Speculative decoding (arXiv:2211.17192). The draft's keys and values lie in blocks of the same
numbers as those of the served model, in memory of its own, so that whatever becomes of a sequence's
blocks holds for both. It reads only where it is asked to guess, and catches up then. It draws as
the served model does, keyed by (seed, position): from alike logits they draw the same token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from raylm.engine.acceptance import StepCost
from raylm.engine.answer import Answer
from raylm.engine.batch import token_batch
from raylm.engine.paged_model import PagedModel
from raylm.engine.sampler import Row, Sampled, sample
from raylm.engine.scheduler import Slice, Step
from raylm.engine.sequence import Sequence
from raylm.errors import RaylmError


@dataclass(slots=True)
class _Guess:
    """What was guessed behind `start` tokens of a sequence."""

    start: int
    token_ids: list[int]


class Drafter:
    """A `Guesser` that computes."""

    def __init__(
        self,
        model: PagedModel,
        *,
        num_tokens: int,
        max_batch_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._num_tokens = num_tokens
        self._max_batch_tokens = max_batch_tokens
        self._clock = clock
        self._cost = StepCost()
        self._guesses: dict[str, _Guess] = {}
        # The key of the tokens that a block holds for the draft; see BlockManager.
        self._held: list[bytes | None] = [None] * model.num_blocks

    def offer(self, sequence: Sequence, most: int) -> int:
        """As many as are configured."""
        self._settle(sequence)
        return min(self._num_tokens, most)

    def pass_s(self, num_sequences: int) -> float:
        """As measured; nothing before that, so that it is."""
        if not self._cost.is_measured or not num_sequences:
            return 0.0
        return float(self._cost.seconds(np.array([num_sequences], np.float64))[0])

    def guess(self, asked: Iterable[tuple[Sequence, Answer, int]]) -> dict[str, list[int]]:
        """One pass for the first token of all, which reads what is new; then one for each more."""
        wanted = list(asked)
        guesses: dict[str, list[int]] = {}
        parts = self._unread(sequence for sequence, _, _ in wanted)
        for part in parts:
            self._note_blocks(part)
        drawing = {part.sequence.id for part in parts if part.samples}
        going = [one for one in wanted if one[0].id in drawing]
        lengths = {sequence.id: len(sequence.token_ids) for sequence, _, _ in going}
        try:
            depth = 0
            while parts:
                drawn = self._pass(parts, [_row(answer, depth) for _, answer, _ in going])
                depth += 1
                kept = []
                for one, sampled in zip(going, drawn, strict=True):
                    sequence, _, count = one
                    if not isinstance(sampled, Sampled):
                        self._mistrust(sequence)
                        continue
                    guesses.setdefault(sequence.id, []).append(sampled.token_id)
                    if depth < count:
                        sequence.token_ids.append(sampled.token_id)
                        kept.append(one)
                going = kept
                parts = [Slice(s, len(s.token_ids) - 1, 1) for s, _, _ in going]
        finally:
            for sequence, _, _ in wanted:
                if sequence.id in lengths:
                    del sequence.token_ids[lengths[sequence.id] :]
        for id, token_ids in guesses.items():
            self._guesses[id] = _Guess(lengths[id], token_ids)
        return guesses

    def known(self, sequence: Sequence) -> list[int]:
        """What was guessed in this step."""
        found = self._guesses.get(sequence.id)
        return [] if found is None else found.token_ids

    def forget(self, request_id: str) -> None:
        """Its guesses are of no use any more."""
        self._guesses.pop(request_id, None)

    def close(self) -> None:
        """Free the model and its cache."""
        self._model.close()

    def _pass(self, parts: list[Slice], rows: list[Row]) -> list[Sampled | RaylmError]:
        began_s = self._clock()
        step = Step(parts, [])
        logits = self._model.forward(token_batch(step, self._model.block_size))
        drawn = sample(logits, rows)
        self._cost.note(step.num_computed, self._clock() - began_s)
        for part in parts:
            part.sequence.num_drafted = max(part.sequence.num_drafted, part.start + part.count)
        return drawn

    def _unread(self, sequences: Iterable[Sequence]) -> list[Slice]:
        """What the draft has not read of each, as far as the budget goes."""
        num_left = self._max_batch_tokens
        parts = []
        for sequence in sequences:
            if not sequence.num_drafted:
                self._find(sequence)
            # The last token is always computed, for its logits.
            start = min(sequence.num_drafted, len(sequence.token_ids) - 1)
            count = min(len(sequence.token_ids) - start, num_left)
            if count:
                parts.append(Slice(sequence, start, count))
                num_left -= count
        return parts

    def _settle(self, sequence: Sequence) -> None:
        """Of what was guessed last, only what came true is in the draft's cache for good."""
        last = self._guesses.pop(sequence.id, None)
        if last is None or sequence.num_drafted <= last.start:
            return
        came = sequence.token_ids[last.start : last.start + len(last.token_ids)]
        num_right = 0
        for guess, token in zip(last.token_ids, came, strict=False):
            if guess != token:
                break
            num_right += 1
        sequence.num_drafted = min(sequence.num_drafted, last.start + num_right)

    def _find(self, sequence: Sequence) -> None:
        """Go on behind the leading blocks that hold just this for the draft, too."""
        size = self._model.block_size
        num_found = 0
        for block, key in zip(sequence.blocks, sequence.keys, strict=False):
            if (num_found + 1) * size > sequence.num_cached or self._held[block] != key:
                break
            num_found += 1
        sequence.num_drafted = num_found * size

    def _note_blocks(self, part: Slice) -> None:
        """What blocks hold once a part is read; the ones behind it are guessed into."""
        size, sequence = self._model.block_size, part.sequence
        first = part.start // size
        for block in sequence.blocks[first:]:
            self._held[block] = None
        # The key of a block that was full already may have come later.
        for index in range(max(0, first - 1), (part.start + part.count) // size):
            if index < len(sequence.keys):
                self._held[sequence.blocks[index]] = sequence.keys[index]

    def _mistrust(self, sequence: Sequence) -> None:
        """After logits that are no numbers: read it anew, and leave none of them to others."""
        self._model.scrub(list(sequence.blocks))
        for block in sequence.blocks:
            self._held[block] = None
        sequence.num_drafted = 0


def _row(answer: Answer, depth: int) -> Row:
    """How the answer's token after `depth` others will be drawn, as far as it is known now."""
    row = answer.row()
    sampling = replace(row.sampling, num_logprobs=None)
    # What a grammar allows is known of the next token only.
    allowed = None if depth else row.allowed
    return replace(row, sampling=sampling, position=row.position + depth, allowed=allowed)
