"""Which tokens of which sequences go into the next step: continuous batching, pure.

Every step takes one token of each sequence that is decoding and fills what is left of the
token budget with prompts, cut in chunks where they do not fit (Orca, OSDI 2022; chunked
prefill, arXiv:2308.16369). When blocks run out, the sequence that came last gives its blocks
back and is computed anew, prompt and emitted tokens, once there is room. A newcomer of higher
priority goes before the prompts of lower ones, and takes their places and blocks if it must.
Those in the background are held back while others are there (raylm/engine/background.py).
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from raylm.engine.background import background_tokens
from raylm.engine.blocks import BlockManager
from raylm.engine.sequence import Sequence

MAX_SCORED_ROWS = 256
"""Prompt tokens in one step whose logits are all computed: a vocabulary of 128k makes that
many rows 128 MiB."""


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` tokens of a sequence from `start`; the ones before are in the cache."""

    sequence: Sequence
    start: int
    count: int
    guessed: tuple[int, ...] = ()
    """Tokens that may come next, computed with the others to find out."""

    @property
    def num_computed(self) -> int:
        """Tokens that the model computes."""
        return self.count + len(self.guessed)

    @property
    def samples(self) -> bool:
        """Whether the last of them is the sequence's last, so that a token is drawn."""
        return self.start + self.count == len(self.sequence.token_ids)

    @property
    def can_guess(self) -> bool:
        """Whether guessed tokens may follow."""
        return self.samples and not self.scores

    @property
    def scores(self) -> bool:
        """Whether the logits of all of them are wanted."""
        return self.start < self.sequence.num_scored


@dataclass(frozen=True, slots=True)
class Step:
    """What to compute, and what was dropped because its deadline passed while it waited."""

    slices: list[Slice]
    expired: list[Sequence]

    @property
    def num_computed(self) -> int:
        """Tokens that the model computes."""
        return sum(part.num_computed for part in self.slices)

    def guessing(self, guessed: Mapping[str, Iterable[int]]) -> Step:
        """The step with guessed tokens behind sequences, by their ids."""
        slices = [
            replace(part, guessed=tuple(guessed[part.sequence.id]))
            if part.sequence.id in guessed
            else part
            for part in self.slices
        ]
        return Step(slices, self.expired)


@dataclass(slots=True)
class _Draft:
    """A step in the making: what is left of its budgets, and the slices by sequence."""

    num_tokens: int
    num_background: int
    num_scored: int = MAX_SCORED_ROWS
    slices: dict[str, Slice] = field(default_factory=dict)

    def add(self, sequence: Sequence) -> None:
        """As many of the sequence's tokens as the budgets allow; it may be none."""
        count = min(sequence.num_pending, self.left_for(sequence))
        if sequence.num_cached < sequence.num_scored:
            count = min(count, self.num_scored)
            self.num_scored -= count
        if count:
            self.num_tokens -= count
            self.num_background -= count if sequence.is_background else 0
            self.slices[sequence.id] = Slice(sequence, sequence.num_cached, count)

    def left_for(self, sequence: Sequence) -> int:
        """Tokens that there may be of a sequence that has none in it yet."""
        if sequence.is_background:
            return min(self.num_tokens, self.num_background)
        return self.num_tokens

    def drop(self, sequence: Sequence) -> None:
        """Without this sequence after all."""
        part = self.slices.pop(sequence.id, None)
        if part is not None:
            self.num_tokens += part.count
            self.num_background += part.count if sequence.is_background else 0
            self.num_scored += part.count if part.scores else 0


class Scheduler:
    """Waiting and running sequences; `schedule` then `advance`, once a step."""

    def __init__(self, blocks: BlockManager, *, max_batch_size: int, max_batch_tokens: int) -> None:
        self.blocks = blocks
        # Every running sequence must be able to decode in every step, and a newcomer of higher
        # priority to find a token left.
        self.max_batch_size = min(max_batch_size, max_batch_tokens - 1)
        self.max_batch_tokens = max_batch_tokens
        self.waiting: list[Sequence] = []  # by rank
        self.running: list[Sequence] = []  # by rank
        self.num_preempted = 0
        self.num_queried_tokens = 0
        self.num_found_tokens = 0
        self._num_arrived = 0
        self._num_held = 0  # steps since the background had any of it

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind those of its priority."""
        sequence.arrival = self._num_arrived
        self._num_arrived += 1
        bisect.insort(self.waiting, sequence, key=_rank)

    def schedule(self, now_s: float, only: Collection[Sequence] = ()) -> Step:
        """Choose the next step's tokens; `now_s` is Unix time, against the deadlines.

        With `only`, all others wait, and what they hold can be had.
        """
        expired = self._drop_expired(now_s)
        draft = _Draft(self.max_batch_tokens, self.max_batch_tokens if only else self._background())
        if only:
            for sequence in [s for s in self.running if s not in only]:
                self._preempt(sequence, draft)
        # Decoding first, so that a long prompt never holds up those who are being answered.
        prompts = []
        for sequence in list(self.running):
            if not draft.left_for(sequence):
                continue
            if sequence.num_pending > 1:
                prompts.append(sequence)
            elif self._make_room(sequence, draft):
                draft.add(sequence)
        prompts.reverse()
        admits = True
        while draft.num_tokens and (prompts or admits):
            newcomer = self._next_waiting(only, draft) if admits else None
            if prompts and (newcomer is None or newcomer.priority <= prompts[-1].priority):
                prompt = prompts.pop()
                if self._make_room(prompt, draft):
                    draft.add(prompt)
            else:
                admits = newcomer is not None and self._admit(newcomer, draft)
        return Step(list(draft.slices.values()), expired)

    def reserve(self, step: Step, wanted: Mapping[str, int]) -> list[tuple[Sequence, int]]:
        """Room for guessed tokens behind sequences of a step that sample, by their ids.

        Only what is left of the budget and of the blocks goes to them: nobody waits or gives
        up anything for a guess.
        """
        num_left = self.max_batch_tokens - sum(part.count for part in step.slices)
        granted = []
        for part in step.slices:
            count = min(num_left, wanted.get(part.sequence.id, 0))
            if not (count and part.can_guess):
                continue
            num_tokens = len(part.sequence.token_ids) + count
            if self.blocks.allocate(part.sequence, num_tokens, num_spare=len(self.running)):
                granted.append((part.sequence, count))
                num_left -= count
        return granted

    def advance(self, step: Step) -> None:
        """Note that a step's tokens are in the cache; call before the new ones are appended."""
        for part in step.slices:
            self._cached_until(part.sequence, part.start + part.count)

    def confirm(self, sequence: Sequence, num_guessed: int) -> None:
        """Note that so many guessed tokens, which are appended now, are in the cache too.

        What the others left there is overwritten, and is in no block that can be found.
        """
        self._cached_until(sequence, sequence.num_cached + num_guessed)

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

    def distrust(self, sequence: Sequence) -> list[int]:
        """Send a running sequence back to be computed anew, and with it whoever would share.

        Returns the blocks that nobody uses any more.
        """
        unused = self.blocks.discard(sequence)
        self._wait_again(sequence)
        return unused

    def _cached_until(self, sequence: Sequence, end: int) -> None:
        begin, sequence.num_cached = sequence.num_cached, end
        if end // self.blocks.block_size > begin // self.blocks.block_size:
            self.blocks.publish(sequence, begin, end)

    def _wait_again(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        bisect.insort(self.waiting, sequence, key=_rank)

    def _preempt(self, sequence: Sequence, draft: _Draft) -> None:
        """Take a running sequence's blocks; it waits at its old rank."""
        self.blocks.free(sequence)
        self._wait_again(sequence)
        draft.drop(sequence)
        self.num_preempted += 1

    def _drop_expired(self, now_s: float) -> list[Sequence]:
        late = [s for s in self.waiting if s.deadline_s is not None and s.deadline_s < now_s]
        for sequence in late:
            self.waiting.remove(sequence)
        return late

    def _next_waiting(self, only: Collection[Sequence], draft: _Draft) -> Sequence | None:
        found = next((s for s in self.waiting if not only or s in only), None)
        return found if found is not None and draft.left_for(found) else None

    def _background(self) -> int:
        # By rank: if the first of them is in the background, all are.
        has_others = any(not s[0].is_background for s in (self.running, self.waiting) if s)
        room = background_tokens(has_others=has_others, num_held=self._num_held)
        self._num_held = 0 if room else self._num_held + 1
        return room

    def _admit(self, sequence: Sequence, draft: _Draft) -> bool:
        """Let a waiting sequence run, in place of some of lower priority if need be."""
        if not self._takes_place(sequence):
            if not self._can_displace(sequence):
                return False
            while not self._takes_place(sequence):
                self._preempt(self.running[-1], draft)
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=_rank)
        if sequence.num_found is None:
            sequence.num_found = sequence.num_cached
            self.num_found_tokens += sequence.num_found
            self.num_queried_tokens += len(sequence.token_ids)
        draft.add(sequence)
        return True

    def _takes_place(self, sequence: Sequence) -> bool:
        """Blocks for all its tokens at once, so that a half-read prompt never waits for them.

        One more is left for each that is running: a newcomer would otherwise take the block
        that its elders need next, and be preempted at once.
        """
        if len(self.running) >= self.max_batch_size:
            return False
        return self.blocks.admit(sequence, num_spare=len(self.running))

    def _can_displace(self, sequence: Sequence) -> bool:
        """Whether there is a place once all of lower priority are gone: none goes for nothing."""
        elders = [s for s in self.running if s.priority >= sequence.priority]
        if len(elders) == len(self.running):
            return False
        needed = self.blocks.blocks_for(len(sequence.token_ids)) + len(elders)
        in_use = self.blocks.num_used_by(elders)
        return len(elders) < self.max_batch_size and needed + in_use <= self.blocks.num_blocks

    def _make_room(self, sequence: Sequence, draft: _Draft) -> bool:
        """Blocks for all of a running sequence, from those behind it if need be."""
        if not sequence.blocks:  # lost them to one before it, in this step
            return False
        while not self.blocks.allocate(sequence, len(sequence.token_ids)):
            last = self.running[-1]
            self._preempt(last, draft)
            if last is sequence:
                return False
        return True


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
