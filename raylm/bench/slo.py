"""Slo: what a request has to keep to count as good, as in `ttft=500ms,tpot=50ms,e2e=10s`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields

from raylm.bench.record import Record
from raylm.errors import ConfigError, nearest

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min)?")
_UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, None: 1.0}


@dataclass(frozen=True, slots=True)
class Slo:
    """Upper bounds in seconds; those that are None are not asked for."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def is_met(self, record: Record) -> bool:
        """Whether the whole answer came within every bound.

        An answer of one token has no time per token, and fails no bound on it; one without any
        text has no first token, and fails a bound on that.
        """
        if not record.is_ok:
            return False
        ttft = float("inf") if record.ttft_s is None else record.ttft_s
        found = ((self.ttft, ttft), (self.tpot, record.tpot_s or 0.0), (self.e2e, record.e2e_s))
        return all(bound is None or value <= bound for bound, value in found)

    def __str__(self) -> str:
        return ",".join(f"{k}={v:g}s" for k, v in asdict(self).items() if v is not None)


def parse_slo(text: str) -> Slo:
    """An SLO from the command line.

    Raises:
        ConfigError: a name is not known or given twice, or a duration cannot be read.
    """
    known = [field.name for field in fields(Slo)]
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known or name in bounds:
            close = nearest(name, known)
            raise ConfigError(
                f"--slo: {part.strip()!r}: each of {', '.join(known)} may be bounded, once",
                code="bench-slo",
                hint=f"did you mean {close!r}?" if close else "--slo ttft=500ms,tpot=50ms,e2e=10s",
            )
        bounds[name] = parse_duration_s(value, f"--slo {name}")
    return Slo(**bounds)


def parse_duration_s(text: str, place: str) -> float:
    """Seconds of `500ms`, `10s`, `2min` or `10`.

    Raises:
        ConfigError: it is none of these, or nought.
    """
    match = _DURATION.fullmatch(text.strip())
    value = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if value <= 0:
        raise ConfigError(
            f"{place}: {text!r} is not a duration",
            code="bench-duration",
            hint="as in 500ms, 10s or 2min",
        )
    return value
