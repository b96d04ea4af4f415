"""The gateway's ASGI application: routes, the guard before them, and the shape of errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from raylm.errors import RequestError
from raylm.serve.auth import Auth
from raylm.serve.endpoints import Gateway
from raylm.serve.failure import error_response, internal_error
from raylm.serve.keyring import Keyring
from raylm.serve.openapi import document
from raylm.serve.replies import Replies
from raylm.serve.table import ROUTES
from raylm.serve.unread import CloseUnread

if TYPE_CHECKING:
    # Only where batches are switched on is what receives their files loaded.
    from raylm.serve.batches.endpoints import BatchRoutes

log = logging.getLogger("raylm.serve")
Handler = Callable[[Request], Awaitable[Response]]
# FastAPI's own spans and logs: they would hold what clients sent.
_NO_TELEMETRY: Any = dict.fromkeys(
    ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
)


def build_app(gateway: Gateway, keyring: Keyring, batches: BatchRoutes | None = None) -> FastAPI:
    """The application. Unless the keyring is open, all but two paths need one of its keys."""
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    handlers = _handlers(gateway, keyring, has_batches=batches is not None)
    for route in ROUTES:
        # Names of models may have slashes in them.
        path = route.path.replace("{model}", "{model:path}")
        app.add_route(path, handlers.pop(route.name), [route.method])
    assert not handlers, "every handler has its route"
    if batches is not None:
        batches.add_to(app)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(Exception, _on_defect)
    app.add_middleware(Auth, keyring=keyring, on_refused=gateway.metrics.refused)
    app.add_middleware(CloseUnread)
    return app


def _handlers(gateway: Gateway, keyring: Keyring, *, has_batches: bool) -> dict[str, Handler]:
    replies = Replies(gateway)

    async def show_document(request: Request) -> Response:
        return JSONResponse(document(needs_key=not keyring.is_open, batches=has_batches))

    return {
        "completions": gateway.completions,
        "chat": gateway.chat,
        "responses": gateway.responses,
        "embeddings": replies.embeddings,
        "classify": replies.classify,
        "tokenize": replies.tokenize,
        "detokenize": replies.detokenize,
        "models": gateway.models,
        "model": gateway.model,
        "healthz": gateway.healthz,
        "readyz": gateway.readyz,
        "metrics": gateway.show_metrics,
        "document": show_document,
    }


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
