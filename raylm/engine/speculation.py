"""Which guessed tokens go into a step, and what they came to: speculation around a guesser.

Guessing stops where it fails: each sequence's guesses are counted, right and wrong, and verified
only while that is expected to save time (raylm/engine/acceptance.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from raylm.engine.acceptance import Acceptance, StepCost, num_worth_guessing
from raylm.engine.answer import Answer
from raylm.engine.guess import Guesser
from raylm.engine.scheduler import Scheduler, Slice, Step
from raylm.engine.sequence import Sequence

log = logging.getLogger(__name__)

_FIRST_CHANCE = 0.5  # of a guess to be right, before any was tried


class Speculation:
    """The guesses for the sequences of one scheduler; once a step `add`, `note`, `took`."""

    def __init__(
        self, guesser: Guesser, scheduler: Scheduler, answer_of: Callable[[Sequence], Answer]
    ) -> None:
        self._guesser = guesser
        self._scheduler = scheduler
        self._answer_of = answer_of
        self._cost = StepCost()
        self._overall = Acceptance()
        self._by_request: dict[str, Acceptance] = {}
        self._is_broken = False
        self.num_guessed_tokens = 0
        self.num_confirmed_tokens = 0

    def add(self, step: Step) -> Step:
        """The step with the guessed tokens that are worth their time."""
        if self._is_broken:
            return step
        sequences = [part.sequence for part in step.slices if part.can_guess]
        offered = [self._guesser.offer(s, self._answer_of(s).num_left - 1) for s in sequences]
        prior = self._overall.chance(_FIRST_CHANCE)
        chances = [self._acceptance(sequence).chance(prior) for sequence in sequences]
        counts = num_worth_guessing(
            chances,
            offered,
            self._cost.seconds,
            step.num_computed,
            self._guesser.pass_s(len(sequences)),
        )
        wanted = {s.id: count for s, count in zip(sequences, counts, strict=True) if count}
        if not wanted:
            return step
        granted = self._scheduler.reserve(step, wanted)
        try:
            guessed = self._guesser.guess((s, self._answer_of(s), n) for s, n in granted)
        except Exception:
            log.exception("guessing failed and is switched off; answers go on without")
            self._is_broken = True
            return step
        return step.guessing(guessed)

    def note(self, part: Slice, token_ids: tuple[int, ...]) -> None:
        """What really came behind a sequence that samples; a guess is right if it is the same."""
        self.num_guessed_tokens += len(part.guessed)
        self.num_confirmed_tokens += len(token_ids) - 1
        if self._is_broken:
            return
        known = self._guesser.known(part.sequence)
        num_tried = min(len(known), len(token_ids))
        right = [guess == token for guess, token in zip(known, token_ids, strict=False)]
        num_right = right.index(False) if False in right else len(right)
        for acceptance in (self._overall, self._acceptance(part.sequence)):
            if known:
                acceptance.note(num_right, num_tried)
            else:
                acceptance.rest()

    def took(self, step: Step, seconds: float) -> None:
        """How long a step took, but for the guessing."""
        self._cost.note(step.num_computed, seconds)

    def forget(self, request_id: str) -> None:
        """An answer is at its end."""
        self._by_request.pop(request_id, None)
        self._guesser.forget(request_id)

    def close(self) -> None:
        """Free what the guesser holds."""
        self._guesser.close()

    def _acceptance(self, sequence: Sequence) -> Acceptance:
        return self._by_request.setdefault(sequence.id, Acceptance())
