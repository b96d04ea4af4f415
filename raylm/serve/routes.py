"""The gateway's ASGI application: routes, the guard before them, and the shape of errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from raylm.errors import RequestError
from raylm.serve.auth import Auth
from raylm.serve.endpoints import Gateway
from raylm.serve.failure import error_response, internal_error

log = logging.getLogger("raylm.serve")
# FastAPI's own spans and logs: they would hold what clients sent.
_NO_TELEMETRY: Any = dict.fromkeys(
    ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
)


def build_app(gateway: Gateway, key_hashes: Sequence[bytes] = ()) -> FastAPI:
    """The application. With hashes of API keys, all but two paths need one of the keys."""
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.add_route("/v1/completions", gateway.completions, ["POST"])
    app.add_route("/v1/chat/completions", gateway.chat, ["POST"])
    app.add_route("/v1/models", gateway.models, ["GET"])
    app.add_route("/v1/models/{model:path}", gateway.model, ["GET"])
    app.add_route("/healthz", gateway.healthz, ["GET"])
    app.add_route("/readyz", gateway.readyz, ["GET"])
    app.add_route("/metrics", gateway.show_metrics, ["GET"])
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(Exception, _on_defect)
    app.add_middleware(Auth, hashes=key_hashes, on_refused=gateway.metrics.refused)
    return app


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message, code = f"{where} is not allowed; allowed: {allowed}", "method-not-allowed"
    else:
        message, code = f"{where} does not exist", "not-found"
    response = error_response(RequestError(message, code=code, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _on_defect(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(internal_error(json.dumps(request.url.path)))
