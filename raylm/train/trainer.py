"""Trainer: Ray Train's, without what a run of raylm does not use.

Every attempt starts new processes, and each of them loads what its classes come from. Ray Train's
TorchTrainer loads torch in the driver and in the controller, one after the other, before a worker
is begun; here it is the workers' alone, who join their process group themselves (group.py).

Two actors are left out: one hands out shards of Ray datasets, of which raylm's workers read none
(a packed split is mapped from disk); one, detached, removes the workers' placement group should
the controller die, which the driver does here (attempts.py).
"""

from __future__ import annotations

import os
from typing import Any

from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

_UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(DataParallelTrainer):
    """Started and awaited like TorchTrainer; its workers call `joined`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, backend_config=_MeetingPlace(), **options)

    def _create_default_callbacks(self) -> list[Any]:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, _UNUSED)
        ]


class _MeetingPlace(BackendConfig):
    @property
    def backend_cls(self) -> type[Backend]:
        return _Meeting


class _Meeting(Backend):
    """Tells all workers an address at which the first one will listen."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        host, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_remember, host, str(port))


def _remember(host: str, port: str) -> None:
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
