"""MFU of models of 124M and 350M parameters at bf16 on one GPU, through `raylm run`.

    python benchmarks/gpu_mfu.py [--sizes 124M 350M] [--steps 40] [--micro-batch N]
        [--only plain liger compile both] [--store FOLDER]

The presets llama-100m and llama-300m with vocabularies that make them so large, on the standard
library in rows of 1,024 tokens. The micro-batch is the largest that `raylm plan` predicts to fit;
what it predicts that takes is beside what was taken. Each is trained as it is, with Liger's kernels
(where they are installed), with its layers compiled, and with both. MFU is what the run's
metrics.jsonl says: of the last 32 steps, against the vendor's dense peak; "unknown" for a GPU that
raylm has no peak of. Exit code 3 where there is no GPU, 1 where a training failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raylm.nvidia import query_gpus
from raylm.train.recent import WINDOW_STEPS

SIZES = {"124M": ("llama-100m", 46_720), "350M": ("llama-300m", 42_240)}
"""Preset and vocabulary of each."""
CASES: dict[str, dict[str, object]] = {
    "plain": {"train.liger": "false", "train.compile": "false"},
    "liger": {"train.liger": "true", "train.compile": "false"},
    "compile": {"train.liger": "false", "train.compile": "true"},
    "both": {"train.liger": "true", "train.compile": "true"},
}
TRAINING = {
    "data.paths": "python:stdlib", "data.exclude": "[encodings]", "data.seq_len": 1024,
    "train.workers": 1, "train.gpus_per_worker": 1, "train.precision": "bf16", "train.zero": 1,
    "train.global_batch": 256, "train.optimizer.lr": 6e-4,
}  # fmt: skip


def main() -> None:
    options = parse(sys.argv[1:])
    names = query_gpus("name")
    if not names:
        print("error: no GPU is here (nvidia-smi tells of none)", file=sys.stderr)
        raise SystemExit(3)
    if find_spec("liger_kernel") is None:
        print("without Liger's kernels: pip install 'raylm[liger]'", file=sys.stderr)
        options.only = [name for name in options.only if name in ("plain", "compile")]
    has_failed = False
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or Path(scratch)
        print(f"{names[0]}, rows of {TRAINING['data.seq_len']} tokens, bf16\n")
        print(
            f"| model | case | micro-batch | tokens/s | MFU | peak GiB | predicted |\n|{'---|' * 7}"
        )
        for size in options.sizes:
            for case in options.only:
                cells = measure(store, size, case, options)
                has_failed |= len(cells) == 1
                print(f"| {' | '.join([size, case, *cells])} |", flush=True)
    raise SystemExit(int(has_failed))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=WINDOW_STEPS + 8)
    parser.add_argument("--micro-batch", type=int, default=None)
    parser.add_argument("--store", type=Path, default=None)
    options = parser.parse_args(words)
    if options.steps <= WINDOW_STEPS + 1:
        parser.error(f"--steps must be more than {WINDOW_STEPS + 1}: the first is warm-up")
    return options


def measure(store: Path, size: str, case: str, options: argparse.Namespace) -> list[str]:
    """Cells of a table's row; one alone is why there are no figures."""
    preset, vocab_size = SIZES[size]
    changes = {
        **TRAINING, **CASES[case], "name": f"mfu-{size}-{case}".lower(), "model.preset": preset,
        "data.tokenizer.vocab_size": vocab_size, "train.steps": options.steps,
    }  # fmt: skip
    micro = options.micro_batch
    if micro is None:
        # Whether the smallest fits is not asked here: the training refuses what does not.
        done = raylm(["plan"], store, changes | {"train.micro_batch": 1})
        micro = json.loads(done.stdout or "{}").get("largest_micro_batch")
        if micro is None:
            return [f"no micro-batch is known to fit: {last_line(done.stderr)}"]
    done = raylm(["run", "--until", "train"], store, changes | {"train.micro_batch": micro})
    if done.returncode:
        return [f"micro-batch {micro}: {last_line(done.stderr)}"]
    found = json.loads(done.stdout)
    (stage,) = [each for each in found["stages"] if each["stage"] == "train"]
    (file,) = Path(found["path"]).glob("train-*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    predicted = stage["metrics"]["plan"]["memory_bytes"]
    return [str(micro), *summary(lines), f"{predicted / 2**30:.1f}"]


def raylm(
    command: list[str], store: Path, changes: dict[str, object]
) -> subprocess.CompletedProcess[str]:
    """One raylm command; what it says goes on to here."""
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "raylm", *command, "--store", str(store), "-o", "json", *words],
        capture_output=True, text=True,
    )  # fmt: skip
    sys.stderr.write(done.stderr)
    return done


def summary(lines: Sequence[dict[str, Any]]) -> list[str]:
    """tokens/s, MFU and peak memory of a training, by the lines of its metrics.jsonl."""
    steps = [line for line in lines if "loss" in line]
    last, first = steps[-1], steps[-1 - WINDOW_STEPS]
    rate = (last["tokens"] - first["tokens"]) / (last["elapsed_s"] - first["elapsed_s"])
    mfu = last["mfu"]
    peak = max(line["max_memory_bytes"] for line in steps)
    return [f"{rate:,.0f}", "unknown" if mfu is None else f"{mfu:.1%}", f"{peak / 2**30:.1f}"]


def last_line(text: str) -> str:
    """The error of a command that failed."""
    lines = [line for line in text.splitlines() if line.startswith("error[")]
    return (lines or text.strip().splitlines() or ["it said nothing"])[-1]


if __name__ == "__main__":
    main()
