"""Engine replicas lost under streams, over and over, and the table of what their clients saw.

    python -m tests.serve.kills run --out FILE.json [--rounds N] [--streams N] [--proxies haproxy]
    python -m tests.serve.kills table FILE.json [--write docs/serving.md]

`run` deploys a model of 13M parameters on two replicas and streams the same prompts again and
again; in each round one replica is killed, frozen or left without memory as soon as every stream
has begun. The texts are compared with those of an undisturbed round, and are so long that it takes
`ROUND_S` at least: no machine is so fast that its answers are over before the replica is lost.
Arithmetic and cache are f32. What was seen is written after each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import psutil

from raylm.config.engine import EngineConfig
from raylm.config.serve import ServeConfig
from raylm.deploy import environment
from raylm.serve.app import Endpoint, deploy, undeploy
from raylm.serve.prepare import served_folder
from raylm.store import Store
from tests.marked import put_between
from tests.serve.conftest import write_llama
from tests.serve.deployed import (
    KEY,
    cluster,
    figures,
    replicas,
    until,
    wait_for_replicas,
    write_keys,
)  # fmt: skip
from tests.serve.streams import Stream, run_streams

Fault = Callable[[psutil.Process], None]


def kill(process: psutil.Process) -> None:
    """kill -9."""
    process.kill()


def freeze(process: psutil.Process) -> None:
    """It runs no more, and its connections stay."""
    process.send_signal(signal.SIGSTOP)


def starve(process: psutil.Process) -> None:
    """It is given no more memory, whatever it asks for; the machine has its own."""
    process.rlimit(psutil.RLIMIT_AS, (2**20, 2**20))


FAULTS: dict[str, Fault] = {
    "kill -9": kill,
    "frozen (SIGSTOP)": freeze,
    "out of memory (RLIMIT_AS)": starve,
}
PROXIES = ("haproxy", "serve")
ROUND_S = 6.0
LEAST_TOKENS, MOST_TOKENS = 192, 1536
MARKS = "<!-- kills: made by `python -m tests.serve.kills table` -->", "<!-- /kills -->"


@dataclass(frozen=True, slots=True)
class Seen:
    """One round."""

    fault: str
    proxy: str
    num_streams: int
    num_errors: int
    num_incomplete: int
    """Streams without their end, or with another number of tokens than was asked for."""
    num_differing: int
    """Texts that differ from the undisturbed ones."""
    num_continued: int
    stalls_s: tuple[float, ...]
    """The longest wait between two pieces of each stream."""


@contextmanager
def cluster_with(proxy: str, root: Path) -> Iterator[Store]:
    """A cluster with HAProxy or Serve's own proxy."""
    found = environment.haproxy_binary() if proxy == "haproxy" else None
    with patch.object(environment, "haproxy_binary", lambda: found), cluster(root) as store:
        yield store


@contextmanager
def deployed(root: Path, store: Store) -> Iterator[Endpoint]:
    """Two replicas of a model that takes its time."""
    write_keys(root)
    folder = write_llama(root / "tiny", hidden=512, layers=8, context=2048)
    yield deploy(
        [served_folder(folder)],
        ServeConfig(port=0, replicas=2, gateways=2, api_keys="keys"),
        # So that a text does not depend on what else is in its batch.
        EngineConfig(precision="f32", kv_cache="f32"),
        cache_root=store.root / "engine",
        base_dir=root,
    )
    undeploy(drain_s=0)


def prompts(count: int) -> list[str]:
    """Prompts that share nothing but their length."""
    return [f"{number:03} the quick brown fox" for number in range(count)]


def stream_all(
    endpoint: Endpoint,
    num_streams: int,
    num_tokens: int,
    fault: Callable[[], None] = lambda: None,
) -> list[Stream]:
    """All prompts at once; the fault happens when each has begun."""
    request = {
        "model": "tiny",
        "max_tokens": num_tokens,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    return asyncio.run(run_streams(endpoint.url, KEY, prompts(num_streams), request, fault=fault))


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What a round without a fault came to."""

    num_tokens: int
    """Of each answer."""
    streams: list[Stream]


def undisturbed(endpoint: Endpoint, num_streams: int) -> Undisturbed:
    """Answers of such a length that they take `ROUND_S` here."""
    num_tokens = LEAST_TOKENS
    while True:
        begun_s = time.monotonic()
        streams = stream_all(endpoint, num_streams, num_tokens)
        took_s = time.monotonic() - begun_s
        if took_s >= ROUND_S or num_tokens == MOST_TOKENS:
            return Undisturbed(num_tokens, streams)
        # A little more than that, since the first round warms up.
        num_tokens = min(MOST_TOKENS, math.ceil(1.2 * num_tokens * ROUND_S / took_s))


def lose(
    endpoint: Endpoint, fault: str, proxy: str, expected: Undisturbed, victim: psutil.Process
) -> Seen:
    """One round: streams, the loss of a replica under them, and the wait for its successor."""
    before = continued(endpoint)
    found = stream_all(
        endpoint, len(expected.streams), expected.num_tokens, lambda: FAULTS[fault](victim)
    )
    seen = Seen(
        fault,
        proxy,
        num_streams=len(found),
        num_errors=sum(stream.error is not None for stream in found),
        num_incomplete=sum(
            (stream.finish_reason, stream.num_tokens) != ("length", expected.num_tokens)
            for stream in found
        ),
        num_differing=sum(a.text != b.text for a, b in zip(found, expected.streams, strict=True)),
        num_continued=int(continued(endpoint) - before),
        stalls_s=tuple(round(stream.stall_s, 3) for stream in found),
    )
    until(lambda: not psutil.pid_exists(victim.pid))
    wait_for_replicas(endpoint, 2)
    return seen


def continued(endpoint: Endpoint) -> float:
    """Answers that have lost their replica."""
    return sum(figures(endpoint, "raylm_answers_interrupted_total"))


def run(out: Path, proxies: Sequence[str], rounds: int, num_streams: int) -> list[Seen]:
    """The campaign; `out` is written after each round."""
    seen: list[Seen] = []
    for proxy in proxies:
        with (
            tempfile.TemporaryDirectory() as root,
            cluster_with(proxy, Path(root) / "store") as store,
            deployed(Path(root), store) as endpoint,
        ):
            expected = undisturbed(endpoint, num_streams)
            for number in range(rounds):
                for fault in FAULTS:
                    victim = replicas("engine-tiny")[number % 2]
                    seen.append(lose(endpoint, fault, proxy, expected, victim))
                    out.write_text(json.dumps([asdict(each) for each in seen]) + "\n")
                    print(time.strftime("%H:%M:%S"), seen[-1], file=sys.stderr, flush=True)
    return seen


def read(file: Path) -> list[Seen]:
    """What `run` wrote."""
    return [
        Seen(**{**each, "stalls_s": tuple(each["stalls_s"])})
        for each in json.loads(file.read_text())
    ]


def table(seen: Sequence[Seen]) -> str:
    """A line for each fault and proxy."""
    lines = [
        "| lost | proxy | rounds | streams | continued | errors | incomplete | differing texts "
        "| stall p50, s | p99, s | longest, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fault, proxy in dict.fromkeys((each.fault, each.proxy) for each in seen):
        rounds = [each for each in seen if (each.fault, each.proxy) == (fault, proxy)]
        stalls = sorted(stall for each in rounds for stall in each.stalls_s)
        p50, p99 = statistics.median(stalls), stalls[int(0.99 * (len(stalls) - 1))]
        sums = [
            sum(getattr(each, name) for each in rounds)
            for name in (
                "num_streams", "num_continued", "num_errors", "num_incomplete", "num_differing",
            )
        ]  # fmt: skip
        cells = [fault, proxy, len(rounds), *sums, f"{p50:.2f}", f"{p99:.2f}", f"{stalls[-1]:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where an error, a gap or a repeat was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--out", type=Path, required=True)
    runs.add_argument("--rounds", type=int, default=20)
    runs.add_argument("--streams", type=int, default=32)
    runs.add_argument("--proxies", default=",".join(PROXIES))
    shows = commands.add_parser("table")
    shows.add_argument("file", type=Path)
    shows.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "run":
        seen = run(options.out, options.proxies.split(","), options.rounds, options.streams)
        return int(any(each.num_errors or each.num_incomplete for each in seen))
    text = table(read(options.file))
    print(text)
    if options.write is not None:
        put_between(options.write, MARKS, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
