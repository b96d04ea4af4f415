"""What a step loop has in hand: an answer in the making, or a text to embed or classify."""

from __future__ import annotations

from typing import Literal

from raylm.engine.answer import Answer
from raylm.engine.encode import EncodeRequest
from raylm.errors import RequestError


class EncodeJob:
    """An embedding or a classification to make; what `Answer` is to a request for text."""

    def __init__(self, request: EncodeRequest) -> None:
        self.request = request

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    def close(self, reason: Literal["cancelled"]) -> RequestError:
        """The end of a job that will not be done."""
        return RequestError(f"request {self.id} was {reason}", code=reason, status=499)


Job = Answer | EncodeJob
