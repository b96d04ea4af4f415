"""raylm's training beside Hugging Face's Trainer, plain torch DDP, and Ray Train with DeepSpeed.

    pip install accelerate      # Trainer asks for it; raylm itself does not
    python benchmarks/train_peers.py [--rounds 2] [--steps 8] [--out FILE.json]

Every candidate trains the same Llama (8 layers of 384, vocabulary 8,192, 512 tokens: 17M) from
the same new weights on the same rows in the same order, two workers of one thread each over gloo,
in the precision whose matrix products are the faster ones here. raylm is `raylm train`, the others
are in peer_loops.py; the two with DeepSpeed use the same ZeRO stage (0 by default, for the others
shard nothing either). Candidates take turns, each time in another order; a matrix product is timed
in two processes at once before and after each. Rounds are added to those that FILE.json has.

- first step: seconds from the start of the command to the end of step 1.
- tokens/s: the median of the steps after the second, with all that happens between two steps.
- memory: the peak of the resident set of the fullest worker.
- share of the GEMM peak: the model's own FLOPs (PaLM, appendix B) over those of the products.
- losses: the largest relative difference from raylm's, so that nobody computes less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peer_loops import LOOPS, WORKERS, Task

from raylm.config.model import ModelConfig
from raylm.model.presets import resolve_shape
from raylm.train.peak import Precision, cpu_peak

SEQ_LEN, VOCAB = 512, 8192
MODEL = {"preset": "llama-10m", "num_layers": 8}
CONFIG = f"""
name: peers
data:
  paths: python:stdlib
  exclude: [encodings]
  seq_len: {SEQ_LEN}
  held_out: 0.05
  tokenizer: {{vocab_size: {VOCAB}}}
model: {json.dumps(MODEL)}
"""
WARM_UP = 2
"""Steps that do not count: the first ones grow memory and fill caches."""
CANDIDATES = ("raylm", *LOOPS)


def main() -> None:
    options = _options()
    if "trainer" in options.only and find_spec("accelerate") is None:
        others = " ".join(name for name in options.only if name != "trainer")
        sys.exit(f"Trainer needs accelerate: pip install accelerate, or: --only {others}")
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "raylm.yaml")
        file.write_text(CONFIG)
        store = options.store or Path(scratch, "store")
        prepared = _raylm("data", file, store, "-o", "json")
        name = json.loads(prepared.stdout)["stages"][0]["ref"].partition("/")[2]
        (dataset,) = (path for path in store.glob("dataset/*") if path.name == name)
        precision: Precision = options.precision or _faster_precision()
        task = Task(
            str(dataset), str(Path(scratch, "figures.json")), MODEL, options.steps,
            options.global_batch, options.micro_batch, 1e-3, precision, options.zero,
            options.documents == "apart",
        )  # fmt: skip
        rounds = _earlier(options.out, task)
        for _ in range(options.rounds):
            first = len(rounds) % len(options.only)
            order = options.only[first:] + options.only[:first]
            rounds.append(_round(order, task, file, store, len(rounds)))
            if options.out:
                found = {"task": asdict(task), "rounds": rounds}
                options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(_table(rounds, options.only, task))


def _earlier(out: Path | None, task: Task) -> list[dict[str, dict[str, Any]]]:
    if out is None or not out.exists():
        return []
    found = json.loads(out.read_text())
    if replace(Task(**found["task"]), out=task.out) != task:
        sys.exit(f"{out} has rounds of another task")
    rounds: list[dict[str, dict[str, Any]]] = found["rounds"]
    return rounds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--zero", type=int, default=0, help="of raylm and of Ray with DeepSpeed")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=None)
    parser.add_argument("--documents", choices=("together", "apart"), default="together",
                        help="apart: documents of a row are masked from each other")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--store", type=Path, default=None, help="keeps the dataset")
    parser.add_argument("--out", type=Path, default=None, help="JSON of every step")
    return parser.parse_args()


def _faster_precision() -> Precision:
    rates = {p: cpu_peak(1, p) for p in ("fp32", "bf16")}
    print(f"GEMM of one thread, GFLOP/s: {_gflops(rates)}", file=sys.stderr)
    return "fp32" if rates["fp32"] >= rates["bf16"] else "bf16"


def _gflops(rates: dict[Any, float]) -> str:
    return ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in rates.items())


def _peak(precision: Precision) -> float:
    """FLOP/s of as many processes at once as there are workers."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(lambda _: cpu_peak(1, precision, seconds=1.0, tries=1), range(WORKERS)))


def _round(
    order: Sequence[str], task: Task, file: Path, store: Path, number: int
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    before = _peak(task.precision)
    for name in order:
        started = time.time()
        if name == "raylm":
            figures = _train_raylm(task, file, store, number)
        else:
            figures = _train_peer(name, task)
        after = _peak(task.precision)
        found[name] = {**figures, "started": started, "gemm": (before + after) / 2}
        before = after
        print(f"{name}: {json.dumps(_figures(found[name], task))}", file=sys.stderr)
    return found


def _raylm(command: str, file: Path, store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raylm", command, "-c", str(file), "--store", str(store), *more],
        check=True, text=True, stdout=subprocess.PIPE,
    )  # fmt: skip


def _train_raylm(task: Task, file: Path, store: Path, number: int) -> dict[str, Any]:
    """One `raylm train`; the name makes each round a run of its own."""
    train = {
        "steps": task.steps, "workers": WORKERS, "threads_per_worker": 1,
        "global_batch": task.global_batch, "micro_batch": task.micro_batch, "zero": task.zero,
        "precision": task.precision, "optimizer.lr": task.lr, "schedule.kind": "constant",
        "schedule.warmup": 0, "checkpoint.every_s": 1e6,
        "mask_documents": str(task.mask_documents).lower(),
    }  # fmt: skip
    sets = [f"train.{key}={value}" for key, value in train.items()]
    sets.append(f"name=round{number}-{time.time_ns()}")
    before = set(store.glob("runs/*/train-*/metrics.jsonl"))
    _raylm(
        "train", file, store, "--force", "train", *(part for one in sets for part in ("--set", one))
    )
    (path,) = set(store.glob("runs/*/train-*/metrics.jsonl")) - before
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        "ends": [line["time"] for line in lines if "loss" in line],
        "losses": [line["loss"] for line in lines if "loss" in line],
        "peak_memory_bytes": lines[-1]["peak_memory_bytes"],
    }


def _train_peer(name: str, task: Task) -> dict[str, Any]:
    loops = str(Path(__file__).with_name("peer_loops.py"))
    launch = [] if name == "ray_deepspeed" else [
        "-m", "torch.distributed.run", "--nproc-per-node", str(WORKERS), "--standalone",
    ]  # fmt: skip
    command = [sys.executable, *launch, loops, name, json.dumps(asdict(task))]
    subprocess.run(command, check=True, stdout=sys.stderr)
    figures: dict[str, Any] = json.loads(Path(task.out).read_text())
    return figures


def _figures(run: dict[str, Any], task: Task) -> dict[str, float]:
    ends = run["ends"]
    seconds = [b - a for a, b in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    rate = task.global_batch * SEQ_LEN / statistics.median(seconds)
    shape = resolve_shape(ModelConfig(**task.model), SEQ_LEN)
    return {
        "first_step_s": ends[0] - run["started"],
        "tokens_per_s": rate,
        "memory_mib": run["peak_memory_bytes"] / 2**20,
        "share": rate * shape.flops_per_token(VOCAB, SEQ_LEN) / run["gemm"],
        "gemm": run["gemm"],
    }


def _table(rounds: list[dict[str, dict[str, Any]]], names: Sequence[str], task: Task) -> str:
    """Medians over rounds, and raylm's tokens/s over each peer's, round by round."""
    head = (
        "", "first step, s", "tokens/s", "share of GEMM peak", "memory, MiB",
        "losses from raylm's", "raylm / this, tokens/s by round",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    found = [{name: _figures(run[name], task) for name in names} for run in rounds]
    for name in names:
        first, rate, share, memory = (
            statistics.median(one[name][key] for one in found)
            for key in ("first_step_s", "tokens_per_s", "share", "memory_mib")
        )
        apart, ratios = "", ""
        if "raylm" in names:
            apart = f"{max(_apart(run['raylm'], run[name]) for run in rounds):.1e}"
            ratios = ", ".join(
                f"{one['raylm']['tokens_per_s'] / one[name]['tokens_per_s']:.3f}" for one in found
            )
        lines.append(
            f"| {name} | {first:.1f} | {rate:,.0f} | {share:.1%} | {memory:,.0f} | {apart} "
            f"| {ratios} |"
        )
    peaks = [one[name]["gemm"] for one in found for name in names]
    lines.append(
        f"\n{task.precision}, {task.global_batch} x {SEQ_LEN} tokens a step in micro-batches of "
        f"{task.micro_batch}, ZeRO {task.zero}, documents "
        f"{'apart' if task.mask_documents else 'together'}; GEMM of {WORKERS} processes at once "
        f"{min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f} GFLOP/s; {len(rounds)} rounds."
    )
    return "\n".join(lines)


def _apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    return max(abs(a - b) / a for a, b in zip(ours["losses"], theirs["losses"], strict=True))


if __name__ == "__main__":
    main()
