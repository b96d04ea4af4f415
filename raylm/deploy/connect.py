"""connect: the Ray cluster that a command works on, whichever there is.

The one that the config names; else the one that is up for the store; else a private one
that ends with this process, however that ends (Ray's processes share its fate).
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from raylm.config.cluster import ClusterConfig
from raylm.deploy import owned
from raylm.deploy.environment import (
    QUIET,
    TRAIN,
    cluster_env,
    keep_only_logs,
    prepare_temp_dir,
    ray_dir,
    sweep_temp_dirs,
    temp_dir_for,
)
from raylm.deploy.guardian import FATE_SHARING_S, guardian
from raylm.deploy.head import START_ATTEMPTS, num_cpus, start_error
from raylm.deploy.ports import LOOPBACK, choose_ports, is_listening
from raylm.deploy.record import read_record, store_token
from raylm.environ import changed_environment
from raylm.errors import HostError, MissingExtra
from raylm.progress import Report, Tick, silent
from raylm.store import Store

_SHUTDOWN_S = 30.0
"""Longer than Ray takes on a busy machine (1.5 s on an idle one)."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster that this process is connected to."""

    address: str
    is_private: bool
    """It ends with this process."""
    logs_dir: Path | None
    """Ray's own logs, where they are on this machine."""


@contextmanager
def connect(store: Store, config: ClusterConfig, report: Report = silent) -> Iterator[Connection]:
    """Connect this process to a cluster, and disconnect at the end.

    A process that is connected already stays so, and nothing is ended.

    Raises:
        HostError: the named cluster does not answer, or a private one does not start.
        MissingExtra: Ray is not installed.
    """
    info = None if config.address else read_record(store)
    if _is_connected():
        yield Connection(config.address or "", is_private=False, logs_dir=None)
    elif config.address:
        env = {**QUIET, **TRAIN}
        with changed_environment(env), _client(config.address, "cluster.address", report):
            yield Connection(config.address, is_private=False, logs_dir=None)
    elif info is not None and info.is_alive:
        with changed_environment(info.env), _client(info.address, "`raylm up`", report):
            yield Connection(info.address, is_private=False, logs_dir=info.logs_dir)
    else:
        with ExitStack() as stack:
            yield _enter_private(stack, store, config, report)


@contextmanager
def _client(address: str, origin: str, report: Report) -> Iterator[None]:
    report(Tick("cluster", f"connecting to {address}"))
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise HostError(
            f"{address!r} ({origin}) is not host:port",
            code="cluster-address",
            hint="--set cluster.address=10.0.0.5:6379",
        )
    if not is_listening(int(port), host, timeout_s=5):
        raise HostError(
            f"no Ray cluster answers at {address} ({origin})",
            code="cluster-unreachable",
            hint="is it up, and reachable from here? Without cluster.address raylm starts its own",
        )
    _init(f"cannot connect to {address} ({origin})", address=address)
    try:
        yield
    finally:
        _shutdown()


def _enter_private(
    stack: ExitStack, store: Store, config: ClusterConfig, report: Report
) -> Connection:
    for _ in range(START_ATTEMPTS - 1):
        try:
            return stack.enter_context(_private(store, config, report))
        except HostError as error:
            if error.code != "cluster-start-slow":
                raise
            report(Tick("cluster", f"{error.message}; trying again"))
    return stack.enter_context(_private(store, config, report))


@contextmanager
def _private(store: Store, config: ClusterConfig, report: Report) -> Iterator[Connection]:
    sweep_temp_dirs()
    cluster_id = os.urandom(4).hex()
    ports, temp_dir = choose_ports(), temp_dir_for(cluster_id)
    env = cluster_env(cluster_id, ports, temp_dir=temp_dir, token=store_token(store))
    logs = ray_dir(temp_dir) / "session_latest" / "logs"
    report(Tick("cluster", "starting a private Ray cluster"))
    prepare_temp_dir(temp_dir, ports)
    try:
        with guardian(cluster_id), changed_environment(env):
            _init(
                "a private Ray cluster does not start",
                address="local",
                num_cpus=num_cpus(config),
                object_store_memory=config.object_store_bytes,
                include_dashboard=False,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(ray_dir(temp_dir)),
            )
            try:
                yield Connection("local", is_private=True, logs_dir=logs)
            finally:
                _shutdown()
    except BaseException:
        _end_private(cluster_id)
        keep_only_logs(temp_dir)
        raise
    _end_private(cluster_id)
    shutil.rmtree(temp_dir, ignore_errors=True)


def _end_private(cluster_id: str) -> None:
    """Give Ray's processes the time to end by themselves, then end what is left."""
    owned.stop_late(lambda: owned.marked(owned.MARK, cluster_id), patience_s=FATE_SHARING_S)


def _is_connected() -> bool:
    # Not imported: not connected. Importing Ray before its environment is set would be too early.
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _init(failure: str, **options: Any) -> None:
    handlers = _signal_handlers()
    waiting: list[int] = []
    for number in handlers:
        # Raised inside Ray's imports and callbacks, Ctrl-C would be swallowed: it waits.
        signal.signal(number, lambda number, frame: waiting.append(number))
    try:
        import ray

        raylet: Any = import_module("ray._raylet")
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "ray", extra="train") from error
    # Ray reads its settings and the token once per process; this one may have had others.
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (Exception, SystemExit) as error:
        # Ray leaves a half-connected process behind.
        _shutdown()
        cause = str(error).strip().splitlines()
        raise start_error(
            f"{failure}: {cause[0] if cause else type(error).__name__}",
            "`raylm doctor` checks this machine; `raylm down` and `raylm up` start anew",
        ) from error
    finally:
        # Ray's own handler turns SIGTERM into exit code 15.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
    _keep_stdout_clean()
    for name in ("ray.serve", "ray.data", "ray.train", "ray.tune"):
        # A filter, because Serve sets its logger's level when it is imported.
        logging.getLogger(name).addFilter(_is_error)
        logging.getLogger(name).setLevel(logging.ERROR)


def _keep_stdout_clean() -> None:
    """Ray prints what raylets report, of nodes that died say, on stdout, which is for results."""
    worker: Any = import_module("ray._private.worker")
    show = worker.print_to_stdstream

    def on_stderr(data: dict[str, Any], ignore_prefix: bool) -> None:
        show({**data, "is_err": True}, ignore_prefix=ignore_prefix)

    if show.__module__ != __name__:
        worker.print_to_stdstream = on_stderr


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _signal_handlers() -> dict[signal.Signals, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}


def _shutdown(limit_s: float = _SHUTDOWN_S) -> None:
    """Disconnect from the cluster, or leave that to the end of the process.

    A client that had been connected for over half an hour was seen to wait for ever, in a call to
    the cluster without a deadline (Ray 2.60, `GcsSubscriberCommandBatch`). The work is done by
    then: it must not keep a command from ending.
    """
    import ray

    ending = threading.Thread(target=ray.shutdown, daemon=True, name="raylm-disconnect")
    ending.start()
    ending.join(limit_s)
    if ending.is_alive():
        # Ray does it again when the interpreter ends, and would wait for the one that waits.
        atexit.unregister(import_module("ray._private.worker").shutdown)
    if context := sys.modules.get("ray.serve.context"):
        # Serve keeps its client, and would ask the controller of this cluster in the next one.
        context._set_global_client(None)
