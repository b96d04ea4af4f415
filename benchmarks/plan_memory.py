"""Peak memory of real DeepSpeed workers beside what `raylm plan` predicts, as docs/plan.md's table.

    python benchmarks/plan_memory.py [--preset llama-30m] [--store FOLDER] [--only TEXT]

Packs the standard library twice (sequences of 128 and 512 tokens), then trains two steps of two
micro-batches on two gloo workers for every combination of ZeRO stage, micro-batch, sequence
length and activation checkpointing. Workers are forked from a process that has imported
everything, so that a case starts in a second; what counts is the peak of the resident set minus
what it was before the worker existed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from itertools import product
from pathlib import Path
from typing import Any

from raylm.config.train import TrainConfig
from raylm.model.presets import PRESETS
from raylm.train.loop import Job
from raylm.train.plan.memory import Decoder, peak_memory
from raylm.train.rss import peak_rss_bytes, reset_peak_rss, rss_bytes

WORKERS = 2
SEQ_LENS = (128, 512)
CONFIG = """
name: plan-{seq_len}
data:
  paths: python:stdlib
  exclude: [encodings]
  seq_len: {seq_len}
  tokenizer: {{vocab_size: 8192}}
"""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="llama-30m")
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path, default=None, help="JSON lines")
    options = parser.parse_args()
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or Path(scratch, "store")
        datasets = {seq_len: packed(store, Path(scratch), seq_len) for seq_len in SEQ_LENS}
        import_everything()
        print(f"| case | baseline MiB | measured MiB | predicted MiB | error |\n|{'---|' * 5}")
        for zero, micro, seq_len, saved, precision in cases():
            name = f"zero {zero}, {micro} x {seq_len}, {precision}" + (", checkpointed" * saved)
            if options.only not in name:
                continue
            changes = {
                "zero": zero, "micro_batch": micro, "global_batch": micro * WORKERS * 2,
                "precision": precision, "activation_checkpointing": saved,
            }  # fmt: skip
            found = measure(options.preset, datasets[seq_len], changes, Path(scratch))
            found["case"] = name
            report(found)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")


def cases() -> list[tuple[int, int, int, bool, str]]:
    """ZeRO stage, micro-batch, sequence length, activation checkpointing, precision."""
    fp32 = list(product((0, 1, 2, 3), (1, 4), SEQ_LENS, (False, True), ("fp32",)))
    return fp32 + [(zero, 1, 512, saved, "bf16") for zero in range(4) for saved in (False, True)]


def packed(store: Path, scratch: Path, seq_len: int) -> Path:
    """The dataset's folder; made by the pipeline's data stage."""
    file = scratch / f"{seq_len}.yaml"
    file.write_text(CONFIG.format(seq_len=seq_len))
    done = subprocess.run(
        [sys.executable, "-m", "raylm", "data", "-c", file, "--store", store, "-o", "json"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return store / json.loads(done.stdout)["stages"][0]["ref"]


def import_everything() -> None:
    """What a worker imports, so that its children need not."""
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    import raylm.train.worker  # noqa: F401

    torch.set_num_threads(1)
    assert threading.active_count() == 1


def measure(preset: str, dataset: Path, changes: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Train one case; returns bytes of the first worker."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        receive, send = context.Pipe(duplex=False)
        arguments = (preset, dataset, changes, Path(folder), send)
        workers = [context.Process(target=work, args=(rank, *arguments)) for rank in range(WORKERS)]
        for worker in workers:
            worker.start()
        send.close()
        found: dict[str, Any] = receive.recv()
        for worker in workers:
            worker.join()
    return found


def work(
    rank: int, preset: str, dataset: Path, changes: dict[str, Any], folder: Path, send: Any
) -> None:
    """One worker: what the training loop does, without Ray around it."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORKERS), LOCAL_SIZE=str(WORKERS),
    )  # fmt: skip
    import torch.distributed

    from raylm.config.model import ModelConfig
    from raylm.data.shards import read_index
    from raylm.train.worker import Worker

    if rank:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS
    )
    config = TrainConfig(steps=2, workers=WORKERS, **changes)
    model = ModelConfig(preset=preset)
    job = Job(model, config, dataset, folder, 0, "c", resume=False, result=folder / "model")
    before = rss_bytes()
    reset_peak_rss()
    phases = {}
    worker = Worker(job, rank=rank, world_size=WORKERS)
    worker.restore()
    phases["made"] = peak_rss_bytes() - before
    peaks = []
    for number in range(2):
        reset_peak_rss()
        worker.step()
        peaks.append(peak_rss_bytes() - before)
        phases[f"step {number + 1}"] = peaks[-1]
    reset_peak_rss()
    worker.save()
    phases["save"] = peak_rss_bytes() - before
    phases["rest"] = rss_bytes() - before
    sizes = {p.name: p.stat().st_size for p in (folder / "checkpoints").glob("*/state/*")}
    torch.distributed.barrier()
    if rank == 0:
        index = read_index(dataset)
        send.send(
            {
                "preset": preset, "changes": changes, "seq_len": index["seq_len"],
                "vocab_size": index["vocab_size"], "baseline_bytes": before, "phases": phases,
                "checkpoint_bytes": sum(sizes.values()), "files": sizes,
            }
        )  # fmt: skip
    os._exit(0)


def report(found: dict[str, Any]) -> None:
    """One row of the table."""
    decoder = Decoder(PRESETS[found["preset"]], found["vocab_size"], found["seq_len"])
    config = TrainConfig(steps=2, workers=WORKERS, **found["changes"])
    memory = peak_memory(decoder, config)
    measured = max(size for phase, size in found["phases"].items() if phase != "rest")
    # The process itself is the baseline, which was there before.
    predicted = memory.total_bytes - memory.process
    sizes = (found["baseline_bytes"], measured, predicted)
    cells = " | ".join(f"{size / 2**20:,.0f}" for size in sizes)
    print(f"| {found['case']} | {cells} | {predicted / measured - 1:+.0%} |", flush=True)


if __name__ == "__main__":
    main()
