"""up, down: the Ray cluster of a store on this machine.

A cluster belongs to a store. Its ports, temporary folder, secret and processes are its own
and written down in `<store>/cluster/`, so two stores have two clusters, and `down` ends what
`up` started and nothing else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raylm.config.cluster import ClusterConfig
from raylm.deploy import head, owned
from raylm.deploy.connect import connect
from raylm.deploy.environment import (
    base_env,
    cluster_env,
    prepare_temp_dir,
    sweep_temp_dirs,
    temp_dir_for,
)
from raylm.deploy.ports import choose_ports
from raylm.deploy.record import (
    ClusterInfo,
    cluster_dir,
    read_record,
    record_path,
    store_token,
    write_record,
)
from raylm.errors import HostError
from raylm.processes import created, is_same
from raylm.progress import Report, Tick, silent
from raylm.store import Store

__all__ = ["ClusterInfo", "Stopped", "connect", "down", "ensure_up", "up"]

START_TIMEOUT_S = 120.0
"""Ten to fifteen seconds on two idle cores; a machine under load takes many times as long."""
_LOCK = "cluster"


@dataclass(frozen=True, slots=True)
class Stopped:
    """What `down` found and did."""

    was_running: bool
    num_processes: int
    """Ended, helpers included."""
    drained: bool
    """Running answers were finished first."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def up(
    store: Store,
    config: ClusterConfig,
    *,
    report: Report = silent,
    timeout_s: float = START_TIMEOUT_S,
) -> ClusterInfo:
    """Start the store's cluster, or return the one that is up.

    Raises:
        HostError: it does not start; what was started has been ended again.
    """
    with store.lock(_LOCK, waiting=_tell(report)):
        info = read_record(store)
        if info is not None and info.is_alive:
            return info
        _clear(store, info)
        for _ in range(head.START_ATTEMPTS - 1):
            try:
                return _start(store, config, report, timeout_s)
            except HostError as error:
                if error.code != "cluster-start-slow":
                    raise
                report(Tick("cluster", f"{error.message}; trying again"))
        return _start(store, config, report, timeout_s)


def ensure_up(store: Store, config: ClusterConfig, *, report: Report = silent) -> bool:
    """Have a cluster to work on; whether this call started it, and so should end it.

    Raises:
        HostError: it does not start.
    """
    info = read_record(store)
    if config.address is not None or (info is not None and info.is_alive):
        return False
    up(store, config, report=report)
    return True


def down(store: Store, *, drain_s: float = 30.0, report: Report = silent) -> Stopped:
    """End the store's cluster: answers are finished, then every process of it ends.

    `drain_s` is how long running answers may take; 0 does not ask Serve at all.

    Raises:
        HostError: a process cannot be ended.
    """
    begun = time.monotonic()
    with store.lock(_LOCK, waiting=_tell(report)):
        info = read_record(store)
        drained = False
        if drain_s > 0 and info is not None and info.is_alive and _serves(info):
            report(Tick("cluster", "finishing running answers"))
            drained = _drain(info, drain_s)
        report(Tick("cluster", "ending Ray"))
        ended = _clear(store, info)
        return Stopped(ended > 0, ended, drained, round(time.monotonic() - begun, 3))


def _start(store: Store, config: ClusterConfig, report: Report, timeout_s: float) -> ClusterInfo:
    folder = cluster_dir(store)
    cluster_id = os.urandom(4).hex()
    ports = choose_ports(config.dashboard_port)
    temp_dir, token, log = temp_dir_for(cluster_id), store_token(store), folder / "head.log"
    env = cluster_env(cluster_id, ports, temp_dir=temp_dir, token=token)
    report(Tick("cluster", "starting Ray"))
    try:
        sweep_temp_dirs()
        prepare_temp_dir(temp_dir, ports)
        process = head.spawn(
            head.head_command(config, ports, temp_dir),
            {
                **base_env(),
                **env,
                owned.STORE_MARK: str(store.root),
                "RAY_START_HOOK": "raylm.deploy.hook.without_ray_client",
            },
            log,
            folder,
        )
        head.wait_until_up(process, ports, temp_dir, log=log, timeout_s=timeout_s, report=report)
        info = ClusterInfo(
            id=cluster_id,
            address=f"127.0.0.1:{ports.gcs}",
            ports=ports,
            temp_dir=temp_dir,
            pid=process.pid,
            create_time=created(process.pid) or time.time(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            num_cpus=head.num_cpus(config),
            env={name: value for name, value in env.items() if name != owned.MARK},
        )
        write_record(store, info)
    except BaseException:
        # Ctrl-C too: what is not recorded must not be left.
        _clear(store, None)
        shutil.rmtree(temp_dir, ignore_errors=True)
        raise
    report(Tick("cluster", f"Ray is up on {info.address}", 1, 1))
    return info


def _clear(store: Store, info: ClusterInfo | None) -> int:
    """End all processes of the store's cluster, and remove its record and folders."""

    def find() -> list[int]:
        pids = set(owned.marked(owned.STORE_MARK, str(store.root)))
        if info is not None:
            pids.update(owned.marked(owned.MARK, info.id))
            if is_same(info.pid, info.create_time):
                pids.update(owned.in_session(info.pid))
        return sorted(pids)

    if info is not None and is_same(info.pid, info.create_time):
        # The head ends its children in order; ours is only what it leaves.
        seen = find()
        owned.stop(lambda: [info.pid] if is_same(info.pid, info.create_time) else [])
        _wait_for_none(find, 3.0)
    else:
        seen = find()
    ended, left = owned.stop(find)
    if left:
        raise HostError(
            f"{len(left)} processes of the cluster cannot be ended: {', '.join(map(str, left))}",
            code="cluster-stop-failed",
            hint="they wait in the kernel (disk, NFS) or belong to another user; "
            "`raylm down` again when they are gone",
        )
    if info is not None:
        shutil.rmtree(info.temp_dir, ignore_errors=True)
    record_path(store).unlink(missing_ok=True)
    return max(len(seen), ended)


def _wait_for_none(find: owned.Find, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while find() and time.monotonic() < deadline:
        time.sleep(0.1)


def _serves(info: ClusterInfo) -> bool:
    return any(b"ServeController" in _command(pid) for pid in owned.marked(owned.MARK, info.id))


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _drain(info: ClusterInfo, drain_s: float) -> bool:
    # In a process of its own: a cluster that is half dead must not hold `down` up.
    command = [sys.executable, "-m", "raylm.deploy.drain", info.address, str(drain_s)]
    env = {**base_env(), **info.env}
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            command, env=env, timeout=drain_s + 20, capture_output=True, check=False
        )
        return done.returncode == 0
    return False


def _tell(report: Report) -> Any:
    return lambda holder: report(Tick("cluster", f"waiting: {holder} starts or ends the cluster"))
