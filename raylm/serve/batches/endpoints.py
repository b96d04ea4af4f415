"""The gateway's handlers of files and batches: they write down what is to be done, no more.

What a key uploads and orders is its own: nothing here ever looks into another's folder.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from raylm.config.serve import BatchesConfig, LimitsConfig
from raylm.errors import HostError, RequestError
from raylm.serve.asked import validated
from raylm.serve.batches.bodies import BatchBody, keep_s
from raylm.serve.batches.files import FileRecord, Files, new_file_id, record_of
from raylm.serve.batches.jobs import Job, Jobs, Order, new_batch_id
from raylm.serve.batches.pages import MAX_FILES_SHOWN, page
from raylm.serve.batches.status import CANCELLABLE
from raylm.serve.batches.table import BATCH_ROUTES
from raylm.serve.batches.upload import receive
from raylm.serve.body import read_json
from raylm.serve.failure import overloaded
from raylm.serve.limits import Admission
from raylm.serve.tenant import tenant_of

MAX_UPLOADS = 8
"""Files that one gateway receives at a time."""
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


@dataclass(slots=True)
class BatchRoutes:
    """Handlers over the folder of batches; `wake` tells the executor that there is something."""

    root: Path
    config: BatchesConfig
    limits: LimitsConfig
    admission: Admission
    wake: Callable[[], None]
    _num_uploads: int = field(default=0, init=False)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        handlers: dict[str, Handler] = {
            "upload": self.upload,
            "list_files": self.list_files,
            "file": self.file,
            "delete": self.delete,
            "content": self.content,
            "create": self.create,
            "list_batches": self.list_batches,
            "batch": self.batch,
            "cancel": self.cancel,
        }
        # One route for all methods of a path: a refusal names them all in its `Allow`.
        paths: dict[str, dict[str, Handler]] = {}
        for route in BATCH_ROUTES:
            paths.setdefault(route.path, {})[route.method] = handlers.pop(route.name)
        assert not handlers, "every handler has its route"
        for path, methods in paths.items():
            app.add_route(path, _by_method(methods), list(methods))

    # Files -------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        """POST /v1/files."""
        files = Files(self._tenant(request))
        if self._num_uploads >= MAX_UPLOADS:
            raise overloaded()
        self._num_uploads += 1
        try:
            if await asyncio.to_thread(files.count) >= self.config.max_files:
                raise _full(f"there are {self.config.max_files} files already; delete some first")
            record = await _stored(self._receive(request, files))
        finally:
            self._num_uploads -= 1
        return JSONResponse(record.to_dict())

    async def _receive(self, request: Request, files: Files) -> FileRecord:
        file_id, limit_s = new_file_id(), self.config.upload_timeout_s
        descriptor = await asyncio.to_thread(files.create, file_id)
        try:
            try:
                async with asyncio.timeout(limit_s):
                    form = await receive(request, descriptor, self.config.max_file_bytes)
            finally:
                os.close(descriptor)
            kept_s = keep_s(form.fields, self.config.expires_after_s)
            assert form.filename is not None
            record = record_of(files, file_id, form.filename, "batch", kept_s)
            await asyncio.to_thread(files.publish, record)
        except BaseException as error:
            files.remove(file_id)
            if isinstance(error, TimeoutError):
                raise RequestError(
                    f"the file did not arrive within {limit_s:g} s",
                    code="body-timeout",
                    status=408,
                ) from None
            raise
        return record

    async def list_files(self, request: Request) -> Response:
        """GET /v1/files."""
        purpose = request.query_params.get("purpose")
        found = await asyncio.to_thread(Files(self._tenant(request)).all, time.time())
        return JSONResponse(
            page(
                [record for record in found if purpose in (None, record.purpose)],
                request.query_params,
                age=lambda record: (record.created_s, record.id),
                show=FileRecord.to_dict,
                default_limit=MAX_FILES_SHOWN,
                max_limit=MAX_FILES_SHOWN,
            )
        )

    async def file(self, request: Request) -> Response:
        """GET /v1/files/{id}."""
        _, record = await self._file(request)
        return JSONResponse(record.to_dict())

    async def content(self, request: Request) -> Response:
        """GET /v1/files/{id}/content."""
        files, record = await self._file(request)
        path = files.content(record.id)
        try:
            stat = await asyncio.to_thread(path.stat)
        except FileNotFoundError:  # deleted meanwhile
            raise _unknown("file", record.id, "id", 404) from None
        # Whole, whatever part is asked for: Starlette refuses parts in a shape of its own.
        request.scope["headers"] = [
            each for each in request.scope["headers"] if each[0] not in (b"range", b"if-range")
        ]
        return FileResponse(path, media_type="application/octet-stream", stat_result=stat)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/files/{id}."""
        files, record = await self._file(request)
        await asyncio.to_thread(files.remove, record.id)
        return JSONResponse({"id": record.id, "object": "file", "deleted": True})

    async def _file(self, request: Request) -> tuple[Files, FileRecord]:
        return await self._find_file(request, str(request.path_params["id"]), "id", 404)

    async def _find_file(
        self, request: Request, file_id: str, param: str, status: int
    ) -> tuple[Files, FileRecord]:
        files = Files(self._tenant(request))
        record = await asyncio.to_thread(files.find, file_id, time.time())
        if record is None:
            raise _unknown("file", file_id, param, status)
        return files, record

    # Batches -----------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """POST /v1/batches."""
        body = validated(BatchBody, await read_json(request, self.limits, self.admission))
        files, record = await self._find_file(request, body.input_file_id, "input_file_id", 400)
        if record.purpose != "batch":
            raise RequestError(
                f"the purpose of this file is {record.purpose!r}; it must be 'batch'",
                code="invalid-parameter",
                param="input_file_id",
            )
        jobs = Jobs(self._tenant(request))
        unfinished = await asyncio.to_thread(_num_unfinished, jobs)
        if unfinished >= self.config.max_batches:
            raise _full(f"{unfinished} batches have not ended yet; wait until some have")
        now_s = time.time()
        order = Order(
            id=new_batch_id(),
            endpoint=body.endpoint,
            input_file_id=record.id,
            created_s=now_s,
            removed_s=now_s + self.config.expires_after_s,
            keep_outputs_s=body.keep_outputs_s(self.config.expires_after_s),
            tenant=tenant_of(request.scope),
            metadata=body.metadata,
        )
        try:
            job = await _stored(asyncio.to_thread(jobs.create, order, files.content(record.id)))
        except FileNotFoundError:
            raise _unknown("file", record.id, "input_file_id", 400) from None
        self.wake()
        return JSONResponse(job.to_dict())

    async def list_batches(self, request: Request) -> Response:
        """GET /v1/batches."""
        found = await asyncio.to_thread(Jobs(self._tenant(request)).all)
        return JSONResponse(
            await asyncio.to_thread(
                page,
                found,
                request.query_params,
                age=lambda job: (job.order.created_s, job.order.id),
                show=Job.to_dict,
            )
        )

    async def batch(self, request: Request) -> Response:
        """GET /v1/batches/{id}."""
        job = await self._job(request)
        return JSONResponse(await asyncio.to_thread(job.to_dict))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/batches/{id}/cancel."""
        job = await self._job(request)
        state = await asyncio.to_thread(job.state)
        if state.status in CANCELLABLE:
            await _stored(asyncio.to_thread(job.want_cancel, time.time()))
            self.wake()
        elif state.status != "cancelling":
            raise RequestError(
                f"a batch that is {state.status} cannot be cancelled",
                code="batch-not-cancellable",
            )
        return JSONResponse(await asyncio.to_thread(job.to_dict))

    async def _job(self, request: Request) -> Job:
        batch_id = str(request.path_params["id"])
        job = await asyncio.to_thread(Jobs(self._tenant(request)).find, batch_id)
        if job is None:
            raise _unknown("batch", batch_id, "id", 404)
        return job

    def _tenant(self, request: Request) -> Path:
        """The folder of whoever asks. An id is hexadecimal, and never another tenant's."""
        return self.root / (tenant_of(request.scope).id or "everyone")


def _by_method(methods: Mapping[str, Handler]) -> Handler:
    async def handle(request: Request) -> Response:
        # Starlette takes HEAD wherever it takes GET.
        return await methods["GET" if request.method == "HEAD" else request.method](request)

    return handle


def _num_unfinished(jobs: Jobs) -> int:
    return sum(not job.state().is_final for job in jobs.all())


async def _stored(work: Awaitable[T]) -> T:
    """The result of writing something; a disk that does not take it is not the client's fault."""
    try:
        return await work
    except FileNotFoundError:
        raise
    except (HostError, OSError) as error:
        raise RequestError(
            "the server cannot store this at the moment", code="storage-failed", status=507
        ) from error


def _unknown(what: str, found: str, param: str, status: int) -> RequestError:
    return RequestError(
        f"there is no {what} {found!r}", code=f"{what}-not-found", status=status, param=param
    )


def _full(message: str) -> RequestError:
    return RequestError(message, code="limit-reached", status=429)
