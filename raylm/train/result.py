"""Which weights become the model: those after the last step, or those of the best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylm.train.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Result:
    """What was chosen, and between what."""

    step: int
    held_out_loss: float
    """Nats per target token, of the chosen step."""
    last_held_out_loss: float
    """Of the last step."""
    num_ranked: int
    """Checkpoints whose loss was known."""
    num_unranked: int
    """Checkpoints that were there and had not been looked at."""
    why: str


def better(found: Sequence[Checkpoint], last_loss: float) -> list[Checkpoint]:
    """Checkpoints with a lower held-out loss than the last step's, the best first; of equal ones
    the later."""
    measured = [
        (c.progress.held_out_loss, -c.progress.step, c)
        for c in found
        if c.progress.held_out_loss is not None and c.progress.held_out_loss < last_loss
    ]
    return [c for _, _, c in sorted(measured, key=lambda each: each[:2])]


def result_of(
    found: Sequence[Checkpoint], chosen: Checkpoint | None, last_step: int, last_loss: float
) -> Result:
    """The choice in words.

    Args:
        found: the run's complete checkpoints before the last step.
        chosen: one of them; None is the last step.
    """
    ranked = sum(c.progress.held_out_loss is not None for c in found)
    step, loss = last_step, last_loss
    why = f"no checkpoint has a lower held-out loss than the last step's {last_loss:.4f}"
    if chosen is not None:
        assert chosen.progress.held_out_loss is not None
        step, loss = chosen.progress.step, chosen.progress.held_out_loss
        why = f"a held-out loss of {loss:.4f}, after the last step {last_step} {last_loss:.4f}"
    return Result(step, loss, last_loss, ranked, len(found) - ranked, why)
