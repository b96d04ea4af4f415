"""What arithmetic this machine's processor does fastest; a table, not a benchmark.

A benchmark at start would let two replicas of one model settle on different arithmetic, and
an answer continued on the other one would change; the flags of the processor are the same
on every machine of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from raylm.config.engine import EngineConfig
from raylm.errors import ConfigError

_INTEGER_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni"})
_ACTIVATION_GROUP = 64  # measured as fast as 128, and as exact as 32


@dataclass(frozen=True, slots=True)
class Precision:
    """Types, in OpenVINO's words: of the arithmetic, and of stored keys and values."""

    arithmetic: str
    kv_cache: str
    activation_group: int = 0
    """Columns of activations that are rounded to 8 bits with one scale, before products with
    integer weights; 0: none are."""


def choose_precision(config: EngineConfig, flags: frozenset[str]) -> Precision:
    """The types to run with, from the configuration and the processor's flags.

    `auto` arithmetic is bf16 where the processor has matrix units for it (amx_bf16), f32
    elsewhere: vector bf16 (avx512_bf16) was measured faster than f32 on one machine and
    slower on the next. `auto` keys and values are u8, except where f32 arithmetic was asked
    for by name: who asks for it wants the exact text. Activations are rounded where the processor
    multiplies 8-bit integers: a prompt took under half the time there, and a token of 8 or more
    sequences six tenths (docs/serving.md). Elsewhere it would cost exactness alone.
    """
    arithmetic = config.precision
    if arithmetic == "auto":
        arithmetic = "bf16" if "amx_bf16" in flags else "f32"
    kv_cache = config.kv_cache
    if kv_cache == "auto":
        kv_cache = "f32" if config.precision == "f32" else "u8"
    if (arithmetic, kv_cache) == ("bf16", "f32"):
        raise ConfigError(
            "keys and values cannot be kept in f32 where arithmetic is bf16, as it is here",
            code="unsupported-kv-cache",
            hint="set engine.precision to f32, or engine.kv_cache to auto",
        )
    rounds = config.dynamic_quantization == "on"
    if config.dynamic_quantization == "auto":
        rounds = config.precision != "f32" and not _INTEGER_PRODUCTS.isdisjoint(flags)
    return Precision(arithmetic, kv_cache, _ACTIVATION_GROUP if rounds else 0)


@cache
def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The first processor's model as Linux names it; empty where it does not say."""
    return _first(cpuinfo, "model name")


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Features of the first processor as Linux names them; none where it does not say."""
    return frozenset(_first(cpuinfo, "flags").split())


def _first(cpuinfo: Path, field: str) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ""
    found = next((line for line in lines if line.startswith(field)), "")
    return found.partition(":")[2].strip()
