"""Calls end with a response, whatever happens, and are reported once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from raylm.errors import RequestError
from raylm.serve.call import Call
from raylm.serve.failure import error_response, internal_error

log = logging.getLogger("raylm.serve")


async def reported(call: Call, work: Awaitable[Response]) -> Response:
    """The response of a call; what it fails with becomes one, too."""
    try:
        return await work
    except RequestError as error:
        call.end(error.status)
        if error.status >= 500:
            log.warning("call %s: %s", call.label, error.code, exc_info=error.__cause__)
        return with_headers(error_response(error), call)
    except ClientDisconnect:
        call.end(499)
        return Response(status_code=499)
    except asyncio.CancelledError:
        call.end(499)
        raise
    except Exception:
        log.exception("call %s failed", call.label)
        call.end(500)
        return with_headers(error_response(internal_error(call.id)), call)


def with_headers(response: Response, call: Call) -> Response:
    """The response with what there is to say of the call."""
    response.headers.update(call.headers)
    return response
