"""The batches of one tenant on the disk.

    <store>/batches/<tenant>/batches/batch_<32 hex digits>/
        order.json      what was asked for: written once, by a gateway
        input.jsonl     the requests: a link, so that the uploaded file may be deleted meanwhile
        cancel.json     the wish to cancel: written once, by a gateway
        state.json      how far it is: written by the executor alone

Every file has one writer, so that nothing needs a lock but the executor.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylm.artifact import disk_errors, sync_folder
from raylm.serve.batches.records import make_private, read_record, write_record
from raylm.serve.batches.status import State, Status, shown
from raylm.serve.tenant import Tenant

WINDOW_S = 86_400.0
"""The one completion window that OpenAI has: 24h."""
_ID = re.compile(r"batch_[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asked for; times are Unix time."""

    id: str
    endpoint: str
    input_file_id: str
    created_s: float
    removed_s: float
    """When the batch itself is forgotten."""
    keep_outputs_s: float
    tenant: Tenant
    """In whose name it is answered: as its key was when the batch was created."""
    metadata: Mapping[str, str] | None = None

    @property
    def expires_s(self) -> float:
        """The end of its window: what is not answered by then will not be."""
        return self.created_s + WINDOW_S


@dataclass(frozen=True, slots=True)
class Cancel:
    """A wish to cancel; Unix time."""

    wanted_s: float


@dataclass(frozen=True, slots=True)
class Job:
    """One batch: its folder, what was asked for, and what can be read and written there."""

    folder: Path
    order: Order

    @property
    def tenant(self) -> Path:
        """The folder of its tenant."""
        return self.folder.parent.parent

    @property
    def input(self) -> Path:
        """The requests."""
        return self.folder / "input.jsonl"

    def state(self) -> State:
        """How far it is."""
        return read_record(self.folder / "state.json", State) or State()

    def write_state(self, state: State) -> State:
        """Note how far it is; the executor's alone to do.

        Raises:
            HostError: the disk is full or cannot be written.
        """
        write_record(self.folder / "state.json", state)
        return state

    def cancel_s(self) -> float | None:
        """When a client wished to cancel it."""
        found = read_record(self.folder / "cancel.json", Cancel)
        return None if found is None else found.wanted_s

    def want_cancel(self, now_s: float) -> None:
        """Note the wish; the first counts.

        Raises:
            HostError: the disk is full or cannot be written.
        """
        if self.cancel_s() is None:
            write_record(self.folder / "cancel.json", Cancel(now_s))

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        order, state = self.order, shown(self.state(), self.cancel_s())
        tally = state.tally
        has_ended = state.is_final
        return {
            "id": order.id,
            "object": "batch",
            "endpoint": order.endpoint,
            "input_file_id": order.input_file_id,
            "completion_window": "24h",
            "status": state.status,
            "errors": _errors(state),
            "output_file_id": state.output_id if has_ended and tally.completed else None,
            "error_file_id": state.errors_id if has_ended and tally.failed else None,
            "created_at": int(order.created_s),
            "expires_at": int(order.expires_s),
            **{f"{status}_at": _at(state, status) for status in _DATED},
            "request_counts": {
                "total": state.total,
                "completed": tally.completed,
                "failed": tally.failed,
            },
            "usage": {
                "input_tokens": tally.input_tokens,
                "input_tokens_details": {"cached_tokens": tally.cached_tokens},
                "output_tokens": tally.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tally.input_tokens + tally.output_tokens,
            },
            "metadata": order.metadata,
        }


_DATED: tuple[Status, ...] = (
    "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled",
)  # fmt: skip


def _at(state: State, status: Status) -> int | None:
    return int(state.since[status]) if status in state.since else None


def _errors(state: State) -> dict[str, Any] | None:
    if not state.problems:
        return None
    return {"object": "list", "data": [asdict(problem) for problem in state.problems]}


class Jobs:
    """One tenant's."""

    def __init__(self, tenant: Path) -> None:
        self.folder = tenant / "batches"

    def create(self, order: Order, content: Path) -> Job:
        """A new batch of the requests in a file.

        Raises:
            FileNotFoundError: the file has been deleted meanwhile.
            HostError: the disk is full or cannot be written.
        """
        make_private(self.folder)
        draft = make_private(self.folder / f".{order.id}")
        job = Job(self.folder / order.id, order)
        try:
            with disk_errors(self.folder):
                os.link(content, draft / job.input.name)
                write_record(draft / "order.json", order)
                draft.rename(job.folder)
                sync_folder(self.folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return job

    def find(self, batch_id: str) -> Job | None:
        """The batch of an id."""
        if not _ID.fullmatch(batch_id):
            return None
        order = read_record(self.folder / batch_id / "order.json", Order)
        return None if order is None else Job(self.folder / batch_id, order)

    def all(self) -> list[Job]:
        """Every batch."""
        found = (self.find(path.name) for path in self.folder.glob("batch_*"))
        return [job for job in found if job is not None]

    def sweep(self, now_s: float) -> None:
        """Forget batches whose time is over."""
        for job in self.all():
            if job.order.removed_s <= now_s and job.state().is_final:
                # Without its order it is no batch, even if this is cut short.
                (job.folder / "order.json").unlink(missing_ok=True)
                shutil.rmtree(job.folder, ignore_errors=True)


def new_batch_id() -> str:
    """An id that nobody can guess."""
    return f"batch_{secrets.token_hex(16)}"
