"""One shape for every failure: `{"error": {message, type, param, code}}` and the right status.

A mistake of the client is never a 5xx: clients repeat those, which triples the load.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus

from starlette.responses import Response

from raylm.errors import RequestError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_json(error: RequestError) -> str:
    """The error as OpenAI's clients read it, on one line."""
    server = "server_error" if error.status >= 500 else "invalid_request_error"
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    body = {
        "message": message,
        "type": _TYPES.get(error.status, server),
        "param": error.param,
        "code": error.code.replace("-", "_"),
    }
    return json.dumps({"error": body})


def error_response(error: RequestError) -> Response:
    """The error as an HTTP response, with Retry-After where it is known."""
    headers = {}
    if error.retry_after_s is not None:
        # Rounded up: who comes back too early is refused again.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s - 1e-3)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_json(error), error.status, headers, "application/json")


def engine_failed(request_id: str) -> RequestError:
    """What a client hears when an engine dies or breaks; the cause goes to the log alone."""
    return RequestError(
        f"the engine failed while answering request {request_id}; try again",
        code="engine-failed",
        status=500,
    )


def model_replaced(request_id: str) -> RequestError:
    """The weights that began an answer are not served any more: others would say something else."""
    return RequestError(
        f"the model was replaced by other weights during the answer to request {request_id}; "
        "ask again",
        code="model-replaced",
        status=503,
        retry_after_s=1,
    )


def internal_error(request_id: str) -> RequestError:
    """What a client hears of a defect of the gateway."""
    return RequestError(
        f"internal error while handling request {request_id}", code="internal-error", status=500
    )


def not_ready(model: str) -> RequestError:
    """No replica of the model can take requests yet, or any more."""
    return RequestError(
        f"no replica of the model {model!r} is ready",
        code="model-not-ready",
        status=503,
        retry_after_s=2,
    )


def overloaded(retry_after_s: float = 1) -> RequestError:
    """More is running and waiting than the configuration allows."""
    return RequestError(
        "too many requests are running and waiting; try again later",
        code="overloaded",
        status=503,
        retry_after_s=retry_after_s,
    )


def draining() -> RequestError:
    """The endpoint is being stopped."""
    return RequestError(
        "the server is stopping and takes no new requests",
        code="draining",
        status=503,
        retry_after_s=5,
    )


def timed_out(limit_s: float) -> RequestError:
    """The answer took longer than `limits.request_timeout_s`."""
    return RequestError(
        f"the answer took longer than {limit_s:g} s", code="request-timeout", status=504
    )
