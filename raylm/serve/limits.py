"""Admission: how much a gateway takes on at a time, and how it stops.

Ray Serve has limits of its own, but answers them in plain text, so the gateway keeps its
count and refuses in OpenAI's shape before a body is read.
"""

from __future__ import annotations

from raylm.serve.failure import draining, overloaded


class Admission:
    """Counts the calls in flight."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self.is_draining = False

    def enter(self) -> None:
        """Count one call in; `leave` must follow.

        Raises:
            RequestError: 503 with Retry-After: full, or stopping.
        """
        if self.is_draining:
            raise draining()
        if self.in_flight >= self.capacity:
            raise overloaded()
        self.in_flight += 1

    def leave(self) -> None:
        """Count one call out."""
        self.in_flight -= 1

    def drain(self) -> int:
        """Take nothing new; how much still runs."""
        self.is_draining = True
        return self.in_flight
