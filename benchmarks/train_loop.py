"""raylm's training beside a bare Ray Train + DeepSpeed loop of the same model, in one run.

The bare loop is what one writes from the libraries' own examples: the same Llama from the same
transformers config, the same packed tokens, two workers with gloo, ZeRO-2, AdamW, gradient
clipping, the loss that transformers computes from labels. It saves nothing and logs nothing.
Each side is a process of its own, in turn. Time to the first step counts from the start of the
process; tokens/s are those of the steps after the fifth.

    python benchmarks/train_loop.py [--rounds 2] [--steps 60]
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
from pathlib import Path

OVERRIDES = ("train.time_s=null", "train.validate_every=null", "train.mask_documents=false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--bare", nargs=2, metavar=("DATASET", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare(Path(arguments.bare[0]), int(arguments.bare[1]))
        return
    with tempfile.TemporaryDirectory() as store:
        os.environ["RAYLM_STORE"] = store
        raylm_command("--until", "data")
        (dataset,) = Path(store, "dataset").iterdir()
        rounds = [
            {"raylm": raylm(store, arguments.steps, number), "bare": peer(dataset, arguments.steps)}
            for number in range(arguments.rounds)
        ]
    for figure in ("first_step_s", "tokens_per_s"):
        ours = statistics.median(r["raylm"][figure] for r in rounds)
        theirs = statistics.median(r["bare"][figure] for r in rounds)
        line = {"figure": figure, "raylm": ours, "bare": theirs, "ratio": round(ours / theirs, 3)}
        print(json.dumps(line))
    print(json.dumps({"rounds": rounds}))


def raylm_command(*more: str) -> float:
    """Run the demo's recipe; returns the wall time at which the process was started."""
    started = time.time()
    sets = [part for key in OVERRIDES for part in ("--set", key)]
    command = [sys.executable, "-m", "raylm", "run", "-c", "demo", *sets, *more]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return started


def raylm(store: str, steps: int, number: int) -> dict[str, float]:
    """Figures of one raylm training; the seed makes each round a run of its own."""
    before = set(Path(store, "runs").glob("*/train-*/metrics.jsonl"))
    # The tokens stay those of seed 0: only the run's name changes.
    started = raylm_command(
        "--until", "train", "--force", "train", "--set", f"train.steps={steps}",
        "--set", f"name=round{number}",
    )  # fmt: skip
    (path,) = set(Path(store, "runs").glob("*/train-*/metrics.jsonl")) - before
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps_only = [line for line in lines if "loss" in line]
    return figures(started, [(line["time"], line["tokens"]) for line in steps_only])


def peer(dataset: Path, steps: int) -> dict[str, float]:
    """Figures of one bare loop."""
    started = time.time()
    command = [sys.executable, __file__, "--bare", str(dataset), str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    last = next(line for line in done.stdout.splitlines() if line.startswith("["))
    return figures(started, json.loads(last))


def figures(started: float, ends: list[tuple[float, int]]) -> dict[str, float]:
    """Time to the first step's end, and tokens per second after the fifth."""
    tokens = ends[-1][1] - ends[4][1]
    return {
        "first_step_s": round(ends[0][0] - started, 2),
        "tokens_per_s": round(tokens / (ends[-1][0] - ends[4][0]), 1),
    }


def bare(dataset: Path, steps: int) -> None:
    """The bare loop's driver; prints `[[time, tokens], ...]`."""
    os.environ.update(DS_ACCELERATOR="cpu", RAY_TRAIN_V2_ENABLED="1", HF_HUB_OFFLINE="1")
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "times.json")
        TorchTrainer(
            bare_worker,
            train_loop_config={"dataset": dataset, "steps": steps, "out": out},
            scaling_config=ScalingConfig(num_workers=2),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name="bare", storage_path=folder),
        ).fit()
        print(out.read_text())
    ray.shutdown()


def bare_worker(settings: dict) -> None:
    """One worker of the bare loop."""
    import deepspeed
    import numpy as np
    import ray.train
    import torch
    from transformers import LlamaForCausalLM

    from raylm.config import load_config
    from raylm.model.build import llama_config
    from raylm.model.presets import resolve_shape

    context = ray.train.get_context()
    rank = context.get_world_rank()
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    config = load_config("demo").config
    train, seq_len = config.train, config.data.seq_len
    files = sorted(Path(settings["dataset"], "train").glob("tokens-*.bin"))
    tokens = np.concatenate([np.fromfile(f, np.uint16) for f in files]).reshape(-1, seq_len)
    torch.manual_seed(0)
    vocab_size = config.data.tokenizer.vocab_size
    model = LlamaForCausalLM(llama_config(resolve_shape(config.model, seq_len), vocab_size, {}))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=train.optimizer.lr, betas=(0.9, 0.95), weight_decay=0.1
    )
    accumulation = train.global_batch // (train.micro_batch * 2)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config={
            "train_batch_size": train.global_batch,
            "train_micro_batch_size_per_gpu": train.micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
        },
    )
    order = np.random.default_rng(0).permutation(len(tokens))
    ends = []
    for step in range(settings["steps"]):
        rows = order[(step * train.global_batch + np.arange(train.global_batch)) % len(order)]
        for micro in np.array_split(rows[rank::2], accumulation):
            ids = torch.from_numpy(tokens[micro].astype(np.int64))
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
        ends.append((time.time(), (step + 1) * train.global_batch * seq_len))
    if rank == 0:
        settings["out"].write_text(json.dumps(ends))


if __name__ == "__main__":
    main()
