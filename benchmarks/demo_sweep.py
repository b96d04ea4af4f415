"""Which model, batch and schedule give the best held-out bits per byte in the demo's 90 s.

Every candidate is the demo's recipe with a few keys set anew, run through `raylm run` until it
is evaluated; the data stage is shared where its keys are the same. Takes about three minutes a
candidate on two idle cores.

    python benchmarks/demo_sweep.py [--time-s 90] [--store FOLDER] > sweep.jsonl
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

CANDIDATES: dict[str, dict[str, object]] = {
    "recipe": {},
    "wider": {
        "model.hidden_size": 256, "model.num_heads": 4, "model.num_kv_heads": 4,
        "model.intermediate_size": 704,
    },
    "narrower": {
        "model.hidden_size": 128, "model.num_heads": 4, "model.num_kv_heads": 4,
        "model.intermediate_size": 352,
    },
    "deeper": {"model.num_layers": 6},
    "shallower": {"model.num_layers": 2},
    "smaller vocabulary": {"data.tokenizer.vocab_size": 4096},
    "larger batch": {"train.global_batch": 8, "train.micro_batch": 4},
    "smaller batch": {"train.global_batch": 2, "train.micro_batch": 1},
    "longer sequences": {"data.seq_len": 512},
    "higher rate": {"train.optimizer.lr": 3e-3},
    "lower rate": {"train.optimizer.lr": 1.5e-3},
    "cosine": {"train.schedule.kind": "cosine"},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-s", type=float, default=90.0)
    parser.add_argument("--store", default=None)
    parser.add_argument("--only", nargs="*", choices=list(CANDIDATES), default=list(CANDIDATES))
    arguments = parser.parse_args()
    for name in arguments.only:
        changes = {"train.time_s": arguments.time_s, "evaluate.max_samples": 256}
        changes |= CANDIDATES[name]
        if arguments.store:
            changes["store"] = arguments.store
        print(json.dumps({"candidate": name, **run(changes)}), flush=True)


def run(changes: dict[str, object]) -> dict[str, object]:
    """One candidate through the pipeline; its held-out figures."""
    command = [sys.executable, "-m", "raylm", "run", "-c", "demo", "--until", "evaluate"]
    command += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run([*command, "-o", "json"], stdout=subprocess.PIPE, text=True, check=True)
    stages = {stage["stage"]: stage["metrics"] for stage in json.loads(done.stdout)["stages"]}
    train, evaluation = stages["train"], stages["evaluate"]
    return {
        "bits_per_byte": round(evaluation["bits_per_byte"], 4),
        "top1_accuracy": round(evaluation["top1_accuracy"], 4),
        "steps": train["steps"],
        "tokens": train["tokens"],
        "tokens_per_s": train["tokens_per_s"],
    }


if __name__ == "__main__":
    main()
