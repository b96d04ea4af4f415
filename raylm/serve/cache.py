"""ResultCache: a gateway's side of the answers that are kept, and equal calls computed once.

The answers lie in one deployment for all gateways; equal calls that come while the first is
being answered share it within a gateway. A cache that is away only means that answers are made.
"""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from raylm.serve.answer import Answer, Items, Source
from raylm.serve.aside import Aside
from raylm.serve.flight import Flight
from raylm.serve.plan import Plan
from raylm.serve.transport import pack, unpack

Found = Literal["hit", "shared", "miss"]
Get = Callable[[str], Awaitable[bytes | None]]
Put = Callable[[str, bytes], Awaitable[None]]


def nothing() -> None:
    """For what needs no end."""


@dataclass(frozen=True, slots=True)
class Served:
    """Where a call's chunks come from; `close` must be called."""

    items: Source
    found: Found
    close: Callable[[], None] = nothing


class ResultCache:
    """Looks answers up, and keeps what is computed."""

    def __init__(self, get: Get, put: Put) -> None:
        self._get, self._put = get, put
        self._aside = Aside("the result cache")
        self._flights: dict[str, Flight] = {}

    async def serve(
        self, key: str, plan: Plan, compute: Callable[[], Source], digest: str = ""
    ) -> Served:
        """The chunks of a call from the store, from an equal call, or computed.

        `digest` is of the weights that the key is for; what others say is not kept.
        """
        kept = await self._aside.ask(lambda: self._get(key))
        if kept is not None:
            return Served(_replay(kept, plan), "hit")
        flight = self._flights.get(key)
        found: Found = "miss" if flight is None else "shared"
        flight = flight or self._begin(key, plan, compute(), digest)
        flight.join()
        return Served(flight.listen(), found, flight.leave)

    def _begin(self, key: str, plan: Plan, source: Source, digest: str) -> Flight:
        async def keep(heard: Sequence[Items]) -> None:
            # The model's name may have been deployed again with others since the call came in.
            if any(chunk.digest not in ("", digest) for items in heard for _, chunk in items):
                return
            await self._aside.ask(partial(self._put, key, _encode(heard)))

        def end() -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]

        flight = Flight(_whole(plan, source), keep, end)
        self._flights[key] = flight
        return flight


async def _whole(plan: Plan, source: Source) -> AsyncGenerator[Items, None]:
    """The same chunks, with an error at the end unless they are a whole answer."""
    checked = Answer.to(plan).read(source)
    try:
        async for taken in checked:
            yield [(choice.index, chunk) for choice, chunk in taken]
    finally:
        await checked.aclose()


def _encode(heard: Sequence[Items]) -> bytes:
    return pickle.dumps([[(i, *pack([chunk])) for i, chunk in items] for items in heard])


async def _replay(kept: bytes, plan: Plan) -> AsyncGenerator[Items, None]:
    # A gateway of this endpoint has written it; nothing of it comes from a client as it is.
    for items in pickle.loads(kept):
        yield [(i, *unpack(plan.requests[i].id, [packed])) for i, packed in items]
