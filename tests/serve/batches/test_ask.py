"""How often a request of a batch is asked, and after how long."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import JSONResponse

from raylm.serve.batches.ask import Retry, ask
from raylm.serve.tenant import Tenant, tenant_of

TENANT = Tenant("id-a", "a")
QUICK = Retry(max_failures=3, first_s=0.0)


@pytest.mark.parametrize(
    ("tries", "retry_after_s", "expected"),
    [
        (1, 0.0, 1.0),
        (2, 0.0, 2.0),
        (2, 9.0, 9.0),
        (7, 0.0, 60.0),
        (10_000, 0.0, 60.0),
        (1, 1e9, 60.0),
    ],
)
def test_it_waits_longer_each_time_or_as_long_as_it_is_told(tries, retry_after_s, expected):
    assert Retry().wait_s(tries, retry_after_s) == expected


@pytest.mark.parametrize(
    ("statuses", "num_asked"),
    [
        ([200], 1),
        ([400, 200], 1),
        ([503] * 20 + [429] * 20 + [200], 41),
        ([500, 503, 504, 200], 4),
        ([500, 503, 504, 500, 200], 4),
    ],
)
def test_what_is_not_the_requests_fault_is_asked_again(statuses, num_asked):
    seen = []

    async def handler(request):
        seen.append(await request.json())
        assert tenant_of(request.scope) is TENANT
        status = statuses[len(seen) - 1]
        return JSONResponse({"n": len(seen)}, status, {"x-request-id": "r"})

    slots = asyncio.Semaphore(1)
    reply = asyncio.run(ask(handler, b'{"model": "m"}', TENANT, QUICK, slots))
    assert seen == [{"model": "m"}] * num_asked
    assert (reply.status, reply.body, reply.request_id) == (
        statuses[num_asked - 1], {"n": num_asked}, "r",
    )  # fmt: skip
    line = reply.line("c", "l")
    assert line["error"] is None and line["response"]["status_code"] == reply.status
