"""The gateway's handlers: what each route does, without Ray."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.core import Metric
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from raylm.config.serve import LimitsConfig
from raylm.errors import RequestError
from raylm.serve.answer import Answer
from raylm.serve.body import read_json
from raylm.serve.call import Call, status_of
from raylm.serve.catalog import Catalog, Entry
from raylm.serve.failure import error_response, internal_error, timed_out
from raylm.serve.format import ChatFormat, CompletionFormat, Format, Head
from raylm.serve.limits import Admission
from raylm.serve.metrics import GatewayMetrics, engine_families, exposition
from raylm.serve.plan import Plan, check_num_choices, plan, prompt_limit
from raylm.serve.prompts import chat_prompt, completion_prompts, echoes
from raylm.serve.readiness import Readiness
from raylm.serve.sse import EventStream, unless_disconnected
from raylm.serve.wire import ChatBody, CompletionBody, Generation

log = logging.getLogger("raylm.serve")
Body = TypeVar("Body", bound=Generation)
Peers = Callable[[], Awaitable[Sequence[Sequence[Metric]]]]


@dataclass(slots=True)
class Gateway:
    """The state of one gateway process, and the handlers of its routes."""

    catalog: Catalog
    limits: LimitsConfig
    admission: Admission
    metrics: GatewayMetrics
    readiness: Readiness
    keep_alive_s: float = 15.0
    peers: Peers | None = None
    """Metrics of all gateways of the endpoint, this one among them; None: it is alone."""
    started_s: int = field(default_factory=lambda: int(time.time()))

    # Answers -----------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, "completions", CompletionBody, self._completion)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, "chat", ChatBody, self._chat)

    async def _completion(
        self, body: CompletionBody, entry: Entry, call: Call
    ) -> tuple[Plan, Format]:
        check_num_choices(body, len(body.prompt), self.limits)
        limit = prompt_limit(await entry.backend.capabilities(), self.limits)
        prompts = await completion_prompts(body, entry, limit_tokens=limit)
        head = self._head(f"cmpl-{call.id}", body, entry)
        form = CompletionFormat(head, echoes(body, entry), entry.tokenizer)
        return await self._plan(body, prompts, entry, call), form

    async def _chat(self, body: ChatBody, entry: Entry, call: Call) -> tuple[Plan, Format]:
        limit = prompt_limit(await entry.backend.capabilities(), self.limits)
        prompt = await chat_prompt(body, entry, limit_tokens=limit)
        form = ChatFormat(self._head(f"chatcmpl-{call.id}", body, entry), entry.tokenizer)
        return await self._plan(body, [prompt], entry, call), form

    async def _plan(
        self, body: Generation, prompts: Sequence[tuple[int, ...]], entry: Entry, call: Call
    ) -> Plan:
        return plan(
            body,
            prompts,
            await entry.backend.capabilities(),
            self.limits,
            request_id=call.id,
            seed=secrets.randbits(63),
            deadline_s=time.time() + self.limits.request_timeout_s,
        )

    def _head(self, answer_id: str, body: Generation, entry: Entry) -> Head:
        return Head(
            id=answer_id,
            model=entry.model.name,
            created=int(time.time()),
            fingerprint=entry.model.digest[:12],
            with_usage=body.include_usage,
        )

    async def _answer(
        self,
        request: Request,
        route: str,
        kind: type[Body],
        prepare: Callable[[Body, Entry, Call], Awaitable[tuple[Plan, Format]]],
    ) -> Response:
        call = Call(route, self.metrics)
        streaming = False
        try:
            self.admission.enter()
            try:
                body = kind.parse(await read_json(request, self.limits))
                entry = self.catalog.find(body.model)
                call.model = entry.model.name
                asked, form = await prepare(body, entry, call)
                answer = Answer.to(asked)
                if body.stream:
                    streaming = True
                    return self._stream(call, answer, entry, form, body.include_usage)
                return await self._whole(request, call, answer, entry, form)
            finally:
                if not streaming:
                    self.admission.leave()
        except RequestError as error:
            call.end(error.status)
            if error.status >= 500:
                log.warning("call %s: %s", call.id, error.code, exc_info=error.__cause__)
            return _with_id(error_response(error), call)
        except (ClientDisconnect, asyncio.CancelledError):
            call.end(499)
            raise
        except Exception:
            log.exception("call %s failed", call.id)
            call.end(500)
            return _with_id(error_response(internal_error(call.id)), call)

    async def _whole(
        self, request: Request, call: Call, answer: Answer, entry: Entry, form: Format
    ) -> Response:
        limit_s = self.limits.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                work = call.collect(answer, entry.backend)
                finished = await unless_disconnected(request.receive, work)
        except TimeoutError:
            raise timed_out(limit_s) from None
        if not finished:
            call.end(499, answer)
            return Response(status_code=499)
        call.end(200, answer)
        return _with_id(Response(form.body(answer), media_type="application/json"), call)

    def _stream(
        self, call: Call, answer: Answer, entry: Entry, form: Format, include_usage: bool
    ) -> Response:
        def ended(error: RequestError | None) -> None:
            call.end(status_of(error), answer)
            if error is not None and error.status >= 500:
                log.warning("call %s: %s", call.id, error.code, exc_info=error.__cause__)

        def closed() -> None:
            call.end(499, answer)  # unless it has ended otherwise
            self.admission.leave()

        return EventStream(
            call.events(answer, entry.backend, form, include_usage=include_usage),
            keep_alive_s=self.keep_alive_s,
            timeout_s=self.limits.request_timeout_s,
            on_timeout=lambda: timed_out(self.limits.request_timeout_s),
            on_defect=lambda: internal_error(call.id),
            on_end=ended,
            on_close=closed,
            headers={"x-request-id": call.id},
        )

    # Models and state --------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """GET /v1/models: from memory, so that it answers before any replica is ready."""
        data = [self._card(name, e) for e in self.catalog.entries for name in e.model.names]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        name = request.path_params["model"]
        return JSONResponse(self._card(name, self.catalog.find(name)))

    def _card(self, name: str, entry: Entry) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": entry.model.created or self.started_s,
            "owned_by": "raylm",
            "root": entry.model.name,
            "digest": entry.model.digest or None,
            "chat": entry.template is not None,
        }

    async def healthz(self, request: Request) -> Response:
        """GET /healthz: this process answers; says nothing of engines."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """GET /readyz: every model has a replica that can work, and nothing is stopping."""
        report = await self.readiness.report()
        if self.admission.is_draining:
            report = {**report, "ready": False, "problems": ["the server is stopping"]}
        return JSONResponse(report, 200 if report["ready"] else 503)

    async def show_metrics(self, request: Request) -> Response:
        """GET /metrics: of all gateways and engine replicas."""
        own = self.families()
        gateways = [own] if self.peers is None else await self.peers()
        states = await self.readiness.states()
        text = exposition(gateways or [own], engine_families(states))
        return Response(text, media_type="text/plain; version=0.0.4")

    def families(self) -> list[Metric]:
        """This gateway's own metrics."""
        return self.metrics.families(self.admission.in_flight)


def _with_id(response: Response, call: Call) -> Response:
    response.headers["x-request-id"] = call.id
    return response
