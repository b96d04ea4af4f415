"""The same training with its layers compiled and as they are, in turn: what a step gains, and after
how many steps the time to compile is won back.

    python benchmarks/train_compile.py [--presets llama-3m llama-10m] [--steps 12] [--rounds 2]
        [--sets train.precision=bf16 ...]

Each is a `raylm run` of its own that trains in its process (`workers: 0`), with all cores of the
machine, on the standard library in rows of 512 tokens. Each preset compiles first into an empty
cache of torch's, as on a new machine, and then once from it. A step's time is the median of the
steps after the third. Compiling takes what the first step takes longer than a later one, less the
same of the training that is not compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

WARM_STEPS = 3
TRAINING = {
    "data.paths": "python:stdlib", "data.exclude": "[encodings]", "data.seq_len": 512,
    "data.tokenizer.vocab_size": 8192, "train.workers": 0,
    "train.global_batch": 4, "train.micro_batch": 4, "train.check_memory": "false",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["llama-3m", "llama-10m"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sets", nargs="*", default=[])
    options = parser.parse_args()
    if options.steps <= WARM_STEPS + 1:
        parser.error(f"--steps must be more than {WARM_STEPS + 1}")
    with tempfile.TemporaryDirectory() as scratch:
        raylm(scratch, "data", {}, options.sets)
        print("| preset | as it is, tokens/s | compiled | gain | compiling, s | from the cache, s |"
              f" pays after steps |\n|{'---|' * 7}")  # fmt: skip
        for preset in options.presets:
            runs = rounds(Path(scratch), preset, options)
            print(row(preset, runs), flush=True)
            print(json.dumps({"preset": preset, "steps_s": runs}), file=sys.stderr, flush=True)


def rounds(scratch: Path, preset: str, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Seconds of each step of each training: of those as they are, and of those compiled."""
    runs: dict[str, list[list[float]]] = {"false": [], "true": []}
    cache = scratch / f"compiled-{preset}"
    for number in range(options.rounds):
        for compiled in runs:
            changes = {
                "name": f"{preset}-{number}-{compiled}", "model.preset": preset,
                "train.steps": options.steps, "train.compile": compiled,
            }  # fmt: skip
            raylm(str(scratch), "train", changes, options.sets, TORCHINDUCTOR_CACHE_DIR=str(cache))
            (file,) = (scratch / "runs").glob(f"{changes['name']}-*/train-*/metrics.jsonl")
            runs[compiled].append(steps_s(file))
    return runs


def raylm(
    store: str, until: str, changes: dict[str, object], sets: list[str], **environment: str
) -> None:
    """Run up to a stage."""
    pairs = [*(f"{key}={value}" for key, value in (TRAINING | changes).items()), *sets]
    command = [sys.executable, "-m", "raylm", "run", "--until", until, "--store", store]
    command += [word for pair in pairs for word in ("--set", pair)]
    subprocess.run(command, env=os.environ | environment, check=True, stdout=sys.stderr)


def steps_s(file: Path) -> list[float]:
    """Seconds of each step of a training, by its metrics.jsonl."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    ends = [0.0, *(line["elapsed_s"] for line in lines if "loss" in line)]
    return [after - before for before, after in pairwise(ends)]


def row(preset: str, runs: dict[str, list[list[float]]]) -> str:
    """A row of the table, of the medians of the rounds."""
    step_s = {name: step(found) for name, found in runs.items()}
    plain_s = statistics.median(first(one) for one in runs["false"])
    compiling = [first(one) - plain_s for one in runs["true"]]
    tokens = int(str(TRAINING["train.global_batch"])) * int(str(TRAINING["data.seq_len"]))
    gained_s = step_s["false"] - step_s["true"]
    pays = f"{compiling[0] / gained_s:,.0f}" if gained_s > 0 else "never"
    cells = [
        preset, f"{tokens / step_s['false']:,.0f}", f"{tokens / step_s['true']:,.0f}",
        f"{step_s['false'] / step_s['true'] - 1:+.1%}", f"{compiling[0]:.1f}",
        ", ".join(f"{one:.1f}" for one in compiling[1:]) or "-", pays,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def step(runs: list[list[float]]) -> float:
    """Seconds of a step when all is warm."""
    return statistics.median(s for one in runs for s in one[WARM_STEPS:])


def first(one: list[float]) -> float:
    """Seconds that the first step takes more than a warm one."""
    return one[0] - statistics.median(one[WARM_STEPS:])


if __name__ == "__main__":
    main()
