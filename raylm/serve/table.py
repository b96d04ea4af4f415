"""The table of routes: what each takes, gives and may fail with.

The application and the document of the API are both made from it, so that neither has a route
that the other lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from raylm.serve import shapes
from raylm.serve.asked import Asked
from raylm.serve.classify import ClassifyBody
from raylm.serve.embeddings import EmbeddingBody
from raylm.serve.metrics import MEDIA_TYPE
from raylm.serve.responses import ResponsesBody
from raylm.serve.responses_shapes import ResponseEvent, ResponseObject
from raylm.serve.tokenize import DetokenizeBody, TokenizeBody
from raylm.serve.wire import ChatBody, CompletionBody

CALL_FAILURES = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
"""What any call to a model may end with."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of a path, or of what follows its `?`."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method; `name` is that of its handler."""

    name: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    answer: type[BaseModel] | None
    """None: text of the kind `media_type`."""
    body: type[BaseModel] | None = None
    event: type[BaseModel] | None = None
    """What `stream` makes of the answer, piece by piece."""
    failures: tuple[int, ...] = (401, 403, 500)
    media_type: str = "application/json"
    also: tuple[int, ...] = ()
    """Further statuses under which the answer has the same shape."""
    form: type[BaseModel] | None = None
    """Instead of a body in JSON."""
    in_path: Parameter | None = None
    query: tuple[Parameter, ...] = ()

    @property
    def asked(self) -> type[Asked] | None:
        """The body of a call to a model, which is counted, measured and bounded in time."""
        return self.body if self.body is not None and issubclass(self.body, Asked) else None


def _call(
    name: str,
    path: str,
    summary: str,
    body: type[Asked],
    answer: type[BaseModel],
    event: type[BaseModel] | None = None,
) -> Route:
    return Route(name, "POST", path, summary, answer, body, event, CALL_FAILURES)


ROUTES = (
    _call(
        "completions",
        "/v1/completions",
        "Continue text or token ids",
        CompletionBody,
        shapes.Completion,
        shapes.CompletionChunk,
    ),
    _call(
        "chat",
        "/v1/chat/completions",
        "Answer a conversation",
        ChatBody,
        shapes.Chat,
        shapes.ChatChunk,
    ),
    _call(
        "responses",
        "/v1/responses",
        "Answer a conversation, in the shape of Responses; nothing is stored",
        ResponsesBody,
        ResponseObject,
        ResponseEvent,
    ),
    _call("embeddings", "/v1/embeddings", "Texts as vectors", EmbeddingBody, shapes.Embeddings),
    _call("classify", "/v1/classify", "The class of each text", ClassifyBody, shapes.Classes),
    _call("tokenize", "/v1/tokenize", "Text to token ids", TokenizeBody, shapes.Tokens),
    _call("detokenize", "/v1/detokenize", "Token ids to text", DetokenizeBody, shapes.Text),
    Route("models", "GET", "/v1/models", "What is served", shapes.ModelList),
    Route(
        "model",
        "GET",
        "/v1/models/{model}",
        "One model",
        shapes.ModelCard,
        failures=(401, 403, 404, 500),
        in_path=Parameter("model", {"type": "string"}),
    ),
    Route("healthz", "GET", "/healthz", "This process answers", shapes.Health, failures=(500,)),
    Route(
        "readyz",
        "GET",
        "/readyz",
        "Every model has a replica that can work",
        shapes.Ready,
        failures=(500,),
        also=(503,),
    ),
    Route(
        "metrics",
        "GET",
        "/metrics",
        "Prometheus text of all gateways and replicas",
        None,
        media_type=MEDIA_TYPE,
    ),
    Route("document", "GET", "/openapi.json", "This document", shapes.Document),
)
