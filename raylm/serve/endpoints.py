"""The gateway's handlers: what each route does, without Ray."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.core import Metric
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from raylm.config.serve import LimitsConfig
from raylm.engine.protocol import Grammar
from raylm.errors import RequestError
from raylm.serve.answer import Answer, Source
from raylm.serve.body import read_json
from raylm.serve.call import DEFAULTS, Call, status_of
from raylm.serve.catalog import Catalog, Entry
from raylm.serve.dispatch import Dispatch
from raylm.serve.failure import internal_error, timed_out
from raylm.serve.format import ChatFormat, CompletionFormat, Format, Head
from raylm.serve.limits import Admission
from raylm.serve.metrics import MEDIA_TYPE, GatewayMetrics, engine_families, exposition
from raylm.serve.plan import Plan, check_num_choices, plan, prompt_limit
from raylm.serve.prompts import chat_prompt, completion_prompts, echoes, template_of
from raylm.serve.readiness import Readiness
from raylm.serve.reported import reported, with_headers
from raylm.serve.responses import ResponsesBody, renamed
from raylm.serve.responses_format import ResponsesFormat
from raylm.serve.results import is_repeatable
from raylm.serve.sse import EventStream, unless_disconnected
from raylm.serve.tenant import Tenant, tenant_of
from raylm.serve.toolset import Toolset, toolset_of
from raylm.serve.wire import ChatBody, CompletionBody, Generation

log = logging.getLogger("raylm.serve")
Body = TypeVar("Body", CompletionBody, ChatBody, ResponsesBody)
Peers = Callable[[], Awaitable[Sequence[Sequence[Metric]]]]


@dataclass(slots=True)
class Gateway:
    """The state of one gateway process, and the handlers of its routes."""

    catalog: Catalog
    limits: LimitsConfig
    admission: Admission
    dispatch: Dispatch
    metrics: GatewayMetrics
    readiness: Readiness
    keep_alive_s: float = 15.0
    priority: int = 0
    """What its calls' priorities in the engines count from; higher goes first."""
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

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        return await self._answer(request, "responses", ResponsesBody, self._response)

    async def _completion(
        self, body: CompletionBody, entry: Entry, call: Call
    ) -> tuple[Plan, Format]:
        check_num_choices(body, len(body.prompt), self.limits)
        able = await entry.backend.capabilities()
        limit = prompt_limit(able, self.limits)
        prompts = await completion_prompts(
            body, entry, limit_tokens=limit, end_id=able.end_of_input_id
        )
        head = self._head(f"cmpl-{call.id}", body, entry)
        asked = await self._plan(body, prompts, body.grammar(), entry, call)
        shown = echoes(body, entry)
        return asked, CompletionFormat(head, body, asked, shown, entry.tokenizer)

    async def _chat(self, body: ChatBody, entry: Entry, call: Call) -> tuple[Plan, Format]:
        asked, tools = await self._conversation(body, entry, call)
        head = self._head(f"chatcmpl-{call.id}", body, entry)
        return asked, ChatFormat(head, entry.tokenizer, None if tools is None else tools.parser)

    async def _response(self, body: ResponsesBody, entry: Entry, call: Call) -> tuple[Plan, Format]:
        try:
            asked, tools = await self._conversation(body.for_chat(), entry, call)
        except RequestError as error:
            raise renamed(error) from error.__cause__
        form = ResponsesFormat(
            body,
            call.id,
            entry.model.name,
            entry.tokenizer,
            None if tools is None else tools.parser,
        )
        return asked, form

    async def _conversation(
        self, body: ChatBody, entry: Entry, call: Call
    ) -> tuple[Plan, Toolset | None]:
        limit = prompt_limit(await entry.backend.capabilities(), self.limits)
        template = template_of(entry)
        tools = toolset_of(body, template, max_tools=self.limits.max_tools)
        prompt = await chat_prompt(body, entry, template, tools, limit_tokens=limit)
        grammar = body.grammar() if tools is None else tools.grammar(entry.tokenizer.added_id)
        return await self._plan(body, [prompt], grammar, entry, call), tools

    async def _plan(
        self,
        body: Generation,
        prompts: Sequence[tuple[int, ...]],
        grammar: Grammar | None,
        entry: Entry,
        call: Call,
    ) -> Plan:
        asked = plan(
            body,
            prompts,
            grammar,
            await entry.backend.capabilities(),
            self.limits,
            request_id=call.id,
            seed=secrets.randbits(63),
            deadline_s=time.time() + call.left_s,
            priority=self.priority,
        )
        for name, value in asked.defaults:
            call.tell(DEFAULTS, name, value)
        return asked

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
        tenant = tenant_of(request.scope)
        call = Call(route, tenant.name, self.metrics, self.limits.request_timeout_s)
        return await reported(call, self._begun(request, call, tenant, kind, prepare))

    async def _begun(
        self,
        request: Request,
        call: Call,
        tenant: Tenant,
        kind: type[Body],
        prepare: Callable[[Body, Entry, Call], Awaitable[tuple[Plan, Format]]],
    ) -> Response:
        call.heed(request.headers)
        body = kind.parse(await read_json(request, self.limits, self.admission))
        with ExitStack() as held:
            self.admission.enter(tenant)
            held.callback(self.admission.leave)
            entry = self.catalog.only(tenant.models).find(body.model, body.variant)
            call.take(entry.model, body)
            asked, form = await prepare(body, entry, call)
            asked = tenant.signed(asked, body.priority, isolate=self.dispatch.isolate)
            repeatable = is_repeatable(asked, has_seed=body.seed is not None)
            source = await self.dispatch.begin(
                asked, entry, tenant, call, held, repeatable=repeatable
            )
            answer = Answer.to(asked)
            if body.stream:
                return self._stream(call, answer, source, form, held.pop_all().close)
            return await self._whole(request, call, answer, source, form)

    async def _whole(
        self, request: Request, call: Call, answer: Answer, source: Source, form: Format
    ) -> Response:
        try:
            async with asyncio.timeout(call.left_s):
                work = call.collect(answer, source)
                finished = await unless_disconnected(request.receive, work)
        except TimeoutError:
            raise timed_out(call.limit_s) from None
        if not finished:
            call.end(499, answer)
            return Response(status_code=499)
        call.end(200, answer)
        return with_headers(Response(form.body(answer), media_type="application/json"), call)

    def _stream(
        self,
        call: Call,
        answer: Answer,
        source: Source,
        form: Format,
        release: Callable[[], None],
    ) -> Response:
        def ended(error: RequestError | None) -> None:
            call.end(status_of(error), answer)
            if error is not None and error.status >= 500:
                log.warning("call %s: %s", call.label, error.code, exc_info=error.__cause__)

        def closed() -> None:
            call.end(499, answer)  # unless it has ended otherwise
            release()

        return EventStream(
            call.events(answer, source, form),
            keep_alive_s=self.keep_alive_s,
            timeout_s=call.left_s,
            stall_s=self.limits.stall_timeout_s,
            last=lambda: form.last_events(answer),
            failure=form.failure,
            on_timeout=lambda: timed_out(call.limit_s),
            on_defect=lambda: internal_error(call.id),
            on_end=ended,
            on_close=closed,
            headers=call.headers,
        )

    # Models and state --------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """GET /v1/models: from memory, so that it answers before any replica is ready."""
        known = self.catalog.only(tenant_of(request.scope).models)
        data = [self._card(name, e) for e in known.entries for name in e.model.names]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}."""
        name = request.path_params["model"]
        known = self.catalog.only(tenant_of(request.scope).models)
        return JSONResponse(self._card(name, known.find(name)))

    def _card(self, name: str, entry: Entry) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": entry.model.created or self.started_s,
            "owned_by": "raylm",
            "root": entry.model.name,
            "variant": entry.model.variant,
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
        return Response(text, media_type=MEDIA_TYPE)

    def families(self) -> list[Metric]:
        """This gateway's own metrics."""
        return self.metrics.families(self.admission.in_flight, self.dispatch.turns.num_waiting)
