"""run: every level of load in turn; Ctrl-C or the end of the time leave what was measured."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

import raylm
from raylm.bench.arrivals import TraceEntry, gamma_arrivals, read_trace
from raylm.bench.ceiling import Ceiling, measure_ceiling
from raylm.bench.client import Client
from raylm.bench.level import Level
from raylm.bench.record import Record
from raylm.bench.result import LevelResult, Run
from raylm.bench.settings import Bodies, Settings, check, quota_of
from raylm.bench.slo import Slo
from raylm.progress import Report, Tick

_CEILING_CHUNKS = 256


class Stop:
    """Ends the level that runs, and lets none begin after it."""

    def __init__(self) -> None:
        self.why: str | None = None
        self.level: Level | None = None

    def __call__(self, why: str) -> None:
        """End now."""
        self.why = self.why or why
        if self.level is not None:
            self.level.stop(self.why)


def run(
    settings: Settings,
    *,
    key: str | None,
    headers: Mapping[str, str],
    slo: Slo | None,
    with_ceiling: bool,
    report: Report,
) -> Run:
    """Put the load on, level by level; in the main thread.

    A `model` that is empty is asked of the server. SIGINT and SIGTERM end it with what there is;
    the second one of either ends it at once.

    Raises:
        ConfigError: the settings do not make sense. HostError: nothing answers.
    """
    trace = read_trace(Path(settings.trace)) if settings.trace else []
    check(settings, trace)
    # What is wrong with the prompts is told before anything is sent.
    Bodies(settings, trace)
    return asyncio.run(_run(settings, trace, key, headers, slo, with_ceiling, report))


async def _run(
    settings: Settings,
    trace: Sequence[TraceEntry],
    key: str | None,
    headers: Mapping[str, str],
    slo: Slo | None,
    with_ceiling: bool,
    report: Report,
) -> Run:
    started, stop, results = datetime.now(UTC), Stop(), list[LevelResult]()
    client = Client(settings.url, key=key, headers=headers, timeout_s=settings.timeout_s)
    async with client:
        if not settings.model:
            settings = replace(settings, model=await client.only_model())
        ceiling = await _ceiling(settings, report) if with_ceiling else None
        bodies = Bodies(settings, trace)
        timer = asyncio.get_running_loop().call_later(settings.max_time_s, stop, "--max-time")
        with stopped_by_signals(stop):
            for value in settings.levels:
                if stop.why is None:
                    results.append(
                        await _level(settings, trace, client, bodies, value, stop, report)
                    )
        timer.cancel()
    return Run(
        started=started.isoformat(timespec="seconds"),
        settings=settings,
        slo=slo,
        stopped=stop.why,
        machine=machine(),
        versions={
            "raylm": raylm.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("aiohttp", "numpy")},
        },
        ceiling=ceiling,
        levels=tuple(results),
    )


async def _ceiling(settings: Settings, report: Report) -> Ceiling:
    report(Tick("ceiling", "what this client can do against a trivial server"))
    return await measure_ceiling(min(settings.max_tokens, _CEILING_CHUNKS))


async def _level(
    settings: Settings,
    trace: Sequence[TraceEntry],
    client: Client,
    bodies: Bodies,
    value: float,
    stop: Stop,
    report: Report,
) -> LevelResult:
    quota = quota_of(settings, value, len(trace))
    name = load_name(settings, value)
    counts = {"ended": 0, "failed": 0}

    def tell(record: Record) -> None:
        if record.phase == "measured":
            counts["ended"] += 1
            counts["failed"] += not record.is_ok
            failed = f", {counts['failed']} failed" if counts["failed"] else ""
            report(Tick(name, f"measured{failed}", counts["ended"], quota.requests, "requests"))

    level = Level(
        lambda body, draft: client.ask(settings.path, body, draft),
        bodies,
        quota,
        max_in_flight=settings.max_in_flight,
        max_requests=settings.max_requests,
        on_record=tell,
    )
    stop.level = level
    report(Tick(name, "warms up" if quota.warmup else "begins"))
    if settings.loop == "concurrency":
        await level.closed_loop(int(value))
    elif settings.loop == "rate":
        await level.open_loop(gamma_arrivals(value, settings.burstiness, settings.seed))
    else:
        await level.open_loop(entry.at_s for entry in trace)
    stop.level = None
    return LevelResult(
        name=name,
        value=value,
        cut=level.cut,
        num_waited=level.num_waited,
        busy_share=round(level.busy_share, 4),
        records=tuple(sorted(level.records, key=lambda record: record.index)),
    )


def load_name(settings: Settings, value: float) -> str:
    """`8/s`, `32 clients` or `trace`."""
    if settings.loop == "trace":
        return "trace"
    if settings.loop == "rate":
        return f"{value:g}/s"
    return f"{value:g} client" + "s" * (value != 1)


def machine() -> dict[str, str | int | float]:
    """Facts about this machine; no name of it."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "cores_for_this_process": len(psutil.Process().cpu_affinity())
        if sys.platform == "linux"
        else os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "load_of_a_minute": round(os.getloadavg()[0], 2),
    }


@contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM stop in order, once; a second one does as it did before."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def on_signal(number: signal.Signals) -> None:
        restore()
        stop(number.name)

    for number in before:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        restore()
