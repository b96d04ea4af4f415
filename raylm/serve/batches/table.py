"""The table of the routes of files and batches, which are there where batches are switched on."""

from __future__ import annotations

from raylm.serve.batches.bodies import BatchBody
from raylm.serve.batches.pages import MAX_FILES_SHOWN, MAX_LIMIT
from raylm.serve.batches.shapes import (
    BatchList,
    BatchObject,
    FileDeleted,
    FileForm,
    FileList,
    FileObject,
)
from raylm.serve.table import Parameter, Route

_STORES = (400, 401, 403, 408, 413, 415, 429, 500, 503, 507)
_LISTS = (400, 401, 403, 500)
_FINDS = (401, 403, 404, 500)
_FILE_ID = Parameter("id", {"type": "string", "pattern": "^file-[0-9a-f]{32}$"})
_BATCH_ID = Parameter("id", {"type": "string", "pattern": "^batch_[0-9a-f]{32}$"})


def _page(most: int, default: int) -> tuple[Parameter, ...]:
    return (
        Parameter("limit", {"type": "integer", "minimum": 1, "maximum": most, "default": default}),
        Parameter("order", {"enum": ["asc", "desc"], "default": "desc"}),
        Parameter("after", {"type": "string"}),
    )


BATCH_ROUTES = (
    Route(
        "upload", "POST", "/v1/files", "Upload requests", FileObject, form=FileForm,
        failures=_STORES,
    ),
    Route(
        "list_files", "GET", "/v1/files", "The key's files", FileList, failures=_LISTS,
        query=(
            *_page(MAX_FILES_SHOWN, MAX_FILES_SHOWN), Parameter("purpose", {"type": "string"}),
        ),
    ),
    Route(
        "file", "GET", "/v1/files/{id}", "One file", FileObject, failures=_FINDS,
        in_path=_FILE_ID,
    ),
    Route(
        "delete", "DELETE", "/v1/files/{id}", "Remove a file", FileDeleted, failures=_FINDS,
        in_path=_FILE_ID,
    ),
    Route(
        "content", "GET", "/v1/files/{id}/content", "What is in a file", None,
        failures=_FINDS, in_path=_FILE_ID, media_type="application/octet-stream",
    ),
    Route(
        "create", "POST", "/v1/batches", "Answer a file of requests", BatchObject, BatchBody,
        failures=_STORES,
    ),
    Route(
        "list_batches", "GET", "/v1/batches", "The key's batches", BatchList, failures=_LISTS,
        query=_page(MAX_LIMIT, 20),
    ),
    Route(
        "batch", "GET", "/v1/batches/{id}", "One batch", BatchObject, failures=_FINDS,
        in_path=_BATCH_ID,
    ),
    Route(
        "cancel", "POST", "/v1/batches/{id}/cancel", "Answer no more of a batch", BatchObject,
        failures=(400, *_FINDS, 507), in_path=_BATCH_ID,
    ),
)  # fmt: skip
