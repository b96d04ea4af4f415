"""Which tokens of which sequences go into the next step: continuous batching, pure.

Every step takes one token of each sequence that is decoding and fills what is left of the
token budget with prompts, cut in chunks where they do not fit (Orca, OSDI 2022; chunked
prefill, arXiv:2308.16369). When blocks run out, the sequence that came last gives its blocks
back and is computed anew, prompt and emitted tokens, once there is room.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from raylm.engine.blocks import BlockManager
from raylm.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` tokens of a sequence from `start`; the ones before are in the cache."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the last of them is the sequence's last, so that a token is drawn."""
        return self.start + self.count == len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True)
class Step:
    """What to compute, and what was dropped because its deadline passed while it waited."""

    slices: list[Slice]
    expired: list[Sequence]


class Scheduler:
    """Waiting and running sequences; `schedule` then `advance`, once a step."""

    def __init__(self, blocks: BlockManager, *, max_batch_size: int, max_batch_tokens: int) -> None:
        self.blocks = blocks
        # Every running sequence must be able to decode in every step.
        self.max_batch_size = min(max_batch_size, max_batch_tokens)
        self.max_batch_tokens = max_batch_tokens
        self.waiting: list[Sequence] = []  # by rank
        self.running: list[Sequence] = []  # by rank
        self.num_preempted = 0
        self._num_arrived = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those of its priority."""
        sequence.arrival = self._num_arrived
        self._num_arrived += 1
        bisect.insort(self.waiting, sequence, key=_rank)

    def schedule(self, now_s: float) -> Step:
        """Choose the next step's tokens; `now_s` is Unix time, against the deadlines."""
        expired = self._drop_expired(now_s)
        budget = self.max_batch_tokens
        chosen: dict[str, Slice] = {}
        # Decoding first, so that a long prompt never holds up those who are being answered.
        for decoding in (True, False):
            for sequence in list(self.running):
                if (sequence.num_pending == 1) is not decoding or budget == 0:
                    continue
                if not self._make_room(sequence, chosen):
                    continue
                budget -= self._choose(sequence, budget, chosen)
        while budget and self.waiting and len(self.running) < self.max_batch_size:
            sequence = self.waiting[0]
            if not self._admits(sequence):
                break
            del self.waiting[0]
            bisect.insort(self.running, sequence, key=_rank)
            budget -= self._choose(sequence, budget, chosen)
        return Step(list(chosen.values()), expired)

    def advance(self, step: Step) -> None:
        """Note that a step's tokens are in the cache; call before the new ones are appended."""
        for part in step.slices:
            part.sequence.num_cached = part.start + part.count

    def finish(self, sequence: Sequence) -> None:
        """Forget a running sequence and free its blocks."""
        self.running.remove(sequence)
        self.blocks.free(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is; one that is already gone is ignored."""
        for queue in (self.running, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
                self.blocks.free(sequence)

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks; it waits at its old rank."""
        self.running.remove(sequence)
        self.blocks.free(sequence)
        sequence.num_cached = 0
        self.num_preempted += 1
        bisect.insort(self.waiting, sequence, key=_rank)

    def _drop_expired(self, now_s: float) -> list[Sequence]:
        late = [s for s in self.waiting if s.deadline_s is not None and s.deadline_s < now_s]
        for sequence in late:
            self.waiting.remove(sequence)
        return late

    def _admits(self, sequence: Sequence) -> bool:
        """Blocks for all its tokens at once, so that a half-read prompt never waits for them.

        One more is left for each that is running: a newcomer would otherwise take the block
        that its elders need next, and be preempted at once.
        """
        needed = self.blocks.blocks_for(len(sequence.token_ids)) + len(self.running)
        if needed > self.blocks.num_free and self.running:
            return False
        return self.blocks.allocate(sequence, len(sequence.token_ids))

    def _make_room(self, sequence: Sequence, chosen: dict[str, Slice]) -> bool:
        """Blocks for all of a running sequence, from those behind it if need be."""
        if sequence not in self.running:  # lost its blocks to one before it, in this step
            return False
        while not self.blocks.allocate(sequence, len(sequence.token_ids)):
            last = self.running[-1]
            self.preempt(last)
            chosen.pop(last.id, None)
            if last is sequence:
                return False
        return True

    def _choose(self, sequence: Sequence, budget: int, chosen: dict[str, Slice]) -> int:
        count = min(sequence.num_pending, budget)
        chosen[sequence.id] = Slice(sequence, sequence.num_cached, count)
        return count


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
