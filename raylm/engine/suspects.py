"""Which of the sequences of a failed step is to blame: halved until one is left.

The halves of a step that failed are tried apart. If the first one fails, the second is taken to
be innocent and goes back to work; if it passes, the second is tried next. A step of n sequences
is thereby followed by at most log2(n) others that fail before the culprit is alone; several
culprits are found one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable

from raylm.engine.sequence import Sequence


class Suspects:
    """Groups of sequences to be tried, one after the other; none while nothing has failed."""

    def __init__(self) -> None:
        self._groups: list[list[Sequence]] = []

    @property
    def group(self) -> list[Sequence]:
        """Those that the next step may be made of; empty is all."""
        return self._groups[0] if self._groups else []

    def accuse(self, sequences: list[Sequence]) -> Sequence | None:
        """Note that a step of just these failed; the culprit, if that is clear now."""
        half = len(sequences) // 2
        self._groups = [sequences[:half], sequences[half:]] if half else []
        return None if half else sequences[0]

    def acquit(self, sequences: Iterable[Sequence]) -> None:
        """They were brought a token further, or are gone."""
        if not self._groups:
            return
        innocent = set(sequences)
        groups = ([s for s in group if s not in innocent] for group in self._groups)
        self._groups = [group for group in groups if group]
