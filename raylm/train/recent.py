"""How fast a training goes now, from its last steps, and how long it will take; pure.

The figures since the start of a run hide what changed: a worker less, a busy machine. And the
first step of a process pays for allocations, so it counts only as long as it is the only one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_STEPS = 32


@dataclass(slots=True)
class Recent:
    """The last steps of one attempt; time is a parameter."""

    steps: deque[tuple[float, int, float | None]] = field(
        default_factory=lambda: deque(maxlen=WINDOW_STEPS)
    )
    """Seconds, tokens and FLOPs of each; FLOPs are None where they are not known."""
    num_steps: int = 0
    first_end_s: float = 0.0
    last_end_s: float = 0.0
    spent_s: float = 0.0
    """In the steps after the first."""

    def note(self, step_s: float, num_tokens: int, flops: float | None, now_s: float) -> None:
        """Take a step into account that took `step_s` and ended at `now_s`."""
        self.num_steps += 1
        if self.num_steps == 1:
            self.first_end_s = now_s
        else:
            self.spent_s += step_s
        if self.num_steps == 2:
            self.steps.clear()
        self.steps.append((step_s, num_tokens, flops))
        self.last_end_s = now_s

    @property
    def tokens_per_s(self) -> float | None:
        """Of the steps themselves, without checkpoints and validation; None before the first."""
        seconds = self._seconds()
        return sum(tokens for _, tokens, _ in self.steps) / seconds if seconds else None

    @property
    def flops_per_s(self) -> float | None:
        """Of the model's own work; None where it is not known."""
        seconds, flops = self._seconds(), [f for _, _, f in self.steps if f is not None]
        return sum(flops) / seconds if seconds and len(flops) == len(self.steps) else None

    def left_s(
        self, *, done: int, horizon: int | None, elapsed_s: float, time_s: float | None
    ) -> float | None:
        """Seconds until the last step, checkpoints and validation included; None is unknown.

        Args:
            horizon: the last step; None as long as a time limit has not fixed it.
            elapsed_s: seconds of all steps so far, those before a resume too.
            time_s: the time limit, seconds of steps.
        """
        if self.num_steps < 2 or not self._seconds():
            return None
        if horizon is not None:
            steps_s = max(0, horizon - done) * self._seconds() / len(self.steps)
        elif time_s is not None:
            steps_s = max(0.0, time_s - elapsed_s)
        else:
            return None
        # What is between steps comes seldom: its share is that of the whole attempt.
        between = (self.last_end_s - self.first_end_s) / self.spent_s if self.spent_s else 1.0
        return steps_s * max(1.0, between)

    def _seconds(self) -> float:
        return sum(seconds for seconds, _, _ in self.steps)
