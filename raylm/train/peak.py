"""The peak of a device in FLOP/s, and how much of it a training uses (MFU, PaLM appendix B).

Peaks of GPUs are the vendor's, dense: the figures with sparsity are twice as high, and an MFU
from them is half of the truth. Of a CPU the peak is what a matrix product reaches here. A device
that is not known has no peak, and its MFU is unknown: no figure is better than a wrong one.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from raylm.artifact import write_atomic
from raylm.config.train import TrainConfig
from raylm.errors import MissingExtra
from raylm.train.plan.room import gpus

Precision = Literal["fp32", "bf16"]
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SIDE = 1024
_OWN_S = 0.2
_OLD_S = 30 * 24 * 3600.0


def _precision(config: TrainConfig) -> Precision:
    # Tensor cores multiply fp16 as fast as bf16.
    assert config.precision != "auto", "chosen before its peak is asked for"
    return "bf16" if config.precision == "fp16" else config.precision


@dataclass(frozen=True, slots=True)
class _Gpu:
    """Dense FLOP/s of a model of GPU; fp32 without TF32, as torch multiplies by default."""

    pattern: str
    bf16: float
    fp32: float


# NVIDIA's data sheets, bf16 with fp32 accumulation, sparse figures halved: H100 (2024-04),
# H200 (2024-11), A100 (2021-06), L40S (2023-08), Ada GPU architecture white paper 2.1 table 2
# (RTX 4090). The first that fits counts.
_GPUS = (
    _Gpu(r"\bH100 PCIe\b", 756e12, 51e12),
    _Gpu(r"\bH100 NVL\b", 835e12, 60e12),
    _Gpu(r"\bH100\b", 989e12, 67e12),
    _Gpu(r"\bH200 NVL\b", 835e12, 60e12),
    _Gpu(r"\bH200\b", 989e12, 67e12),
    _Gpu(r"\bA100\b", 312e12, 19.5e12),
    _Gpu(r"\bL40S\b", 362e12, 91.6e12),
    _Gpu(r"\bRTX 4090$", 165.2e12, 82.6e12),
)


def gpu_peak(name: str, precision: Precision) -> float | None:
    """Dense peak FLOP/s of a GPU by the name its driver gives; None is unknown.

    A slice of a GPU (MIG) and laptop versions are unknown.
    """
    if re.search(r"\bMIG\b|Laptop|Max-Q", name):
        return None
    found = next((gpu for gpu in _GPUS if re.search(gpu.pattern, name.strip())), None)
    return getattr(found, precision) if found else None


# 1024^3 is large enough for the rate of large products, and small enough for a slow core; 512^3 is
# over before a busy machine takes the core away. Emulated bf16 would take many seconds, and is
# measured at 256^3 if a first try is that slow. Tries are apart, so that a burst of other work does
# not hit all of them.
_GEMM = """
import sys, time, torch
threads, precision = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(threads)
dtype = torch.bfloat16 if precision == "bf16" else torch.float32
a = torch.randn(256, 256).to(dtype)
a @ a
start = time.perf_counter()
a @ a
sides = (256,) if time.perf_counter() - start > 0.02 else (512, 1024)
best = 0.0
for number in range(int(sys.argv[4])):
    if number:
        time.sleep(0.1)
    for n in sides:
        a = torch.randn(n, n).to(dtype)
        b, out, end = a.T.contiguous(), a @ a, None
        while end is None or time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            now = time.perf_counter()
            end = end or now + float(sys.argv[3]) / len(sides)
            best = max(best, 2 * n**3 / (now - start))
print(best)
"""


def cpu_peak(threads: int, precision: Precision, *, seconds: float = 0.1, tries: int = 5) -> float:
    """The best rate of a large matrix product on this machine's CPU, FLOP/s, of some short tries.

    Measured in a process of its own, so that this one needs no torch.

    Raises:
        MissingExtra: torch is not installed.
    """
    done = subprocess.run(
        [sys.executable, "-c", _GEMM, str(threads), precision, str(seconds), str(tries)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise MissingExtra("torch", extra="train")
    return float(done.stdout)


def own_peak(config: TrainConfig) -> float | None:
    """The peak FLOP/s of what this worker's process has of a device; None is unknown.

    A CPU's is measured here, with the threads that torch is bound to. Workers that measure
    together share caches and clock as they do in training.
    """
    import torch

    if config.gpus_per_worker:
        if not torch.cuda.is_available():
            return None
        whole = gpu_peak(torch.cuda.get_device_name(), _precision(config))
        return whole * min(1.0, config.gpus_per_worker) if whole else None
    # Ones: random numbers would come from the generator that the training draws from.
    a = torch.ones(_SIDE, _SIDE, dtype=getattr(torch, _DTYPES[config.precision]))
    out, best = a @ a, math.inf
    end = time.perf_counter() + _OWN_S
    while (start := time.perf_counter()) < end:
        torch.mm(a, a, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best


def mfu(tokens_per_s: float, flops_per_token: float, peak: float | None) -> float | None:
    """Model FLOP/s utilisation: the share of the peak that the model's own work takes.

    Args:
        flops_per_token: without what activation checkpointing computes again.
        peak: of all devices together, FLOP/s; None gives None.
    """
    return tokens_per_s * flops_per_token / peak if peak else None


def worker_threads(config: TrainConfig) -> int:
    """Threads of one worker on this machine, as the training loop binds them."""
    return config.threads_per_worker or max(1, len(os.sched_getaffinity(0)) // config.max_workers)


@dataclass(frozen=True, slots=True)
class Measured:
    """A CPU's peak, and when it was measured."""

    flops: float
    """FLOP/s."""
    time: float
    """Unix time; 0 where it was not noted."""


def fresher(before: Measured | None, now: Measured) -> Measured:
    """Which of two measurements counts: the faster, since other work only slows; the later, if
    the other is old, since machines change."""
    if before is None or now.time - before.time > _OLD_S or now.flops > before.flops:
        return now
    return before


def measure_peak(config: TrainConfig, root: Path) -> float | None:
    """The peak FLOP/s of one worker's device here. That of a CPU is measured, and the best of a
    month is remembered under `root` with its date."""
    if config.gpus_per_worker:
        return known_peak(config, root)
    found = Measured(cpu_peak(worker_threads(config), _precision(config)), time.time())
    remembered = _remembered(root)
    remembered[_key(config)] = fresher(remembered.get(_key(config)), found)
    values = {key: asdict(each) for key, each in remembered.items()}
    write_atomic(_memory(root), json.dumps(values) + "\n")
    return remembered[_key(config)].flops


def known_peak(config: TrainConfig, root: Path) -> float | None:
    """The same without measuring: a GPU's from the table, a CPU's if it was measured before."""
    if config.gpus_per_worker:
        peaks = [gpu_peak(name, _precision(config)) for name, _ in gpus()]
        known = [peak for peak in peaks if peak is not None]
        return min(known) if known and len(known) == len(peaks) else None
    found = _remembered(root).get(_key(config))
    return found.flops if found else None


def _key(config: TrainConfig) -> str:
    return f"{socket.gethostname()} {config.precision} {worker_threads(config)} threads"


def _memory(root: Path) -> Path:
    return root / "peaks.json"


def _remembered(root: Path) -> dict[str, Measured]:
    try:
        raw = json.loads(_memory(root).read_text(encoding="utf-8"))
        # Before they had dates they were numbers: of one try, and old.
        return {
            key: Measured(**value) if isinstance(value, dict) else Measured(float(value), 0.0)
            for key, value in raw.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
