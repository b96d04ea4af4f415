"""Nothing of it: no process, namespace, mount, device, table, control group or folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from k8s.local import cgroups, network
from k8s.local.layout import STATE
from k8s.local.processes import kill_all, names, recorded, wait_until
from raylm.errors import HostError

_ENDED_S = 30.0


def down() -> None:
    """Remove a cluster, whole or half made; without one it does nothing.

    Raises:
        HostError: `k8s-left`, with what could not be removed.
    """
    wait_until("the end of the cluster's processes", _are_dead, _ENDED_S)
    network.remove()
    cgroups.remove()
    shutil.rmtree(STATE, ignore_errors=True)
    left = remains()
    if left:
        raise HostError(f"the cluster left: {'; '.join(left)}", code="k8s-left")


def remains() -> list[str]:
    """Whatever of a cluster is on this machine, each in a few words."""
    found = [f"namespace {name}" for name in network.namespaces()]
    if found:
        found += [f"process {pid}" for pid in network.pids()]
    found += [f"process {pid} in a control group" for pid in cgroups.processes()]
    found += [f"control group {path}" for path in cgroups.remain()]
    found += [f"mount {path}" for path in _mounts()]
    if network.has_device():
        found.append("network device")
    if STATE.exists():
        found.append(f"folder {STATE}")
    return found


def _are_dead() -> bool:
    # A machine's first process ends after all others of its pid namespace have, pods' too. One
    # that is ending is in no network any more, so those that were recorded are asked for too.
    known = [pid for pid in map(recorded, names()) if pid is not None]
    pids = {*known, *network.pids(), *cgroups.processes()}
    kill_all(sorted(pids))
    return not pids


def _mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if STATE.name in line.split()[4]]
