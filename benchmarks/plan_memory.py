"""Memory and speed of real DeepSpeed workers beside what `raylm plan` predicts, for docs/plan.md.

    python benchmarks/plan_memory.py [--preset llama-30m] [--store FOLDER] [--only TEXT ...]

Packs the standard library (sequences of 128 and 512 tokens), then trains four steps of two
micro-batches on two gloo workers for every combination of ZeRO stage, micro-batch, sequence
length and activation checkpointing. An encoder (bert-10m) learns hidden tokens of it, an
encoder-decoder (t5-10m) to say the second half of a stretch of it when it reads the first.
`--only` takes cases whose names have one of the texts in them, and packs what those need. Workers
are forked from a process that has imported everything, so that a case starts in a second; what
counts is the peak of the resident set minus what it was before the worker existed. Tokens/s are
those of the faster of the last two steps, with all gradients reduced and no checkpoint written;
the peak for the prediction is what matrix products of two processes at once reach, measured first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from raylm.config.model import ModelConfig
from raylm.config.train import ObjectiveName, TrainConfig
from raylm.data.shards import read_index
from raylm.model.folder import Architecture
from raylm.model.presets import architecture, preset_shape
from raylm.train.loop import Job
from raylm.train.peak import Precision, cpu_peak
from raylm.train.plan.memory import peak_memory
from raylm.train.plan.pace import pace
from raylm.train.plan.subject import subject_of
from raylm.train.rss import peak_rss_bytes, reset_peak_rss, rss_bytes

WORKERS = 2
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
HEAD = (
    "case", "baseline, MiB", "measured, MiB", "predicted, MiB", "error",
    "tokens/s", "predicted", "error",
)  # fmt: skip
SEQ_LENS = (128, 512)
VOCAB = 8192
OBJECTIVES: dict[Architecture, ObjectiveName] = {
    "decoder": "causal", "encoder-decoder": "seq2seq", "encoder": "mlm",
}  # fmt: skip


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="llama-30m")
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--only", nargs="+", default=[""])
    parser.add_argument("--out", type=Path, default=None, help="JSON lines")
    options = parser.parse_args()
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or Path(scratch, "store")
        kind = architecture(preset_shape(options.preset))
        chosen = [case for case in cases() if any(text in name_of(*case) for text in options.only)]
        datasets = {
            seq_len: packed(store, Path(scratch), seq_len, kind)
            for seq_len in sorted({case[2] for case in chosen})
        }
        peaks = {precision: worker_peak(precision) for precision in PRECISIONS}
        import_everything()
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
        for case in chosen:
            zero, micro, seq_len, saved, precision = case
            changes = {
                "zero": zero, "micro_batch": micro, "global_batch": micro * WORKERS * 2,
                "precision": precision, "activation_checkpointing": saved,
            }  # fmt: skip
            found = measure(options.preset, datasets[seq_len], changes, Path(scratch))
            found |= {"case": name_of(*case), "worker_peak": peaks[precision]}
            report(found)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(found) + "\n")


def cases() -> list[tuple[int, int, int, bool, str]]:
    """ZeRO stage, micro-batch, sequence length, activation checkpointing, precision."""
    fp32 = list(product((0, 1, 2, 3), (1, 4), SEQ_LENS, (False, True), ("fp32",)))
    return fp32 + [(zero, 1, 512, saved, "bf16") for zero in range(4) for saved in (False, True)]


def name_of(zero: int, micro: int, seq_len: int, saved: bool, precision: str) -> str:
    """What a case is called."""
    return f"zero {zero}, {micro} x {seq_len}, {precision}" + (", checkpointed" * saved)


def packed(store: Path, scratch: Path, seq_len: int, kind: Architecture) -> Path:
    """The dataset's folder; made by the pipeline's data stage."""
    file = scratch / f"{seq_len}.yaml"
    data: dict[str, Any] = {"seq_len": seq_len, "tokenizer": {"vocab_size": VOCAB}}
    if kind == "encoder-decoder":
        data |= {"paths": str(pairs(scratch, seq_len)), "format": "pairs", "too_long": "truncate"}
    else:
        data |= {"paths": "python:stdlib", "exclude": ["encodings"]}
    if kind == "encoder":
        data["tokenizer"]["mask_token"] = True
    # JSON is YAML.
    file.write_text(json.dumps({"name": f"plan-{kind}-{seq_len}", "data": data}))
    done = subprocess.run(
        [sys.executable, "-m", "raylm", "data", "-c", file, "--store", store, "-o", "json"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return store / json.loads(done.stdout)["stages"][0]["ref"]


def pairs(scratch: Path, seq_len: int) -> Path:
    """Stretches of the standard library cut in two, a few of which fill a row, as JSONL."""
    file = scratch / f"pairs-{seq_len}.jsonl"
    with file.open("w") as out:
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            for start in range(0, len(text) - 2 * seq_len, 2 * seq_len):
                middle = start + seq_len
                pair = {"source": text[start:middle], "target": text[middle : middle + seq_len]}
                out.write(json.dumps(pair) + "\n")
    return file


def worker_peak(precision: Precision) -> float:
    """FLOP/s of one worker while all compute."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(pool.map(lambda _: cpu_peak(1, precision), range(WORKERS))) / WORKERS


def import_everything() -> None:
    """What a worker imports, so that its children need not."""
    import torch
    from transformers import (  # noqa: F401
        BertForMaskedLM,
        LlamaForCausalLM,
        T5ForConditionalGeneration,
    )

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

    from raylm.train.worker import Worker

    if rank:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS
    )
    config = TrainConfig(steps=4, workers=WORKERS, **changes)
    model = ModelConfig(preset=preset)
    objective = OBJECTIVES[architecture(preset_shape(preset))]
    job = Job(
        model, config, dataset, folder, 0, "c", resume=False, result=folder / "model",
        objective=objective,
    )  # fmt: skip
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
    step_s = []
    for _ in range(2):
        start = time.perf_counter()
        worker.step()
        step_s.append(time.perf_counter() - start)
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
                "checkpoint_bytes": sum(sizes.values()), "files": sizes, "step_s": min(step_s),
            }
        )  # fmt: skip
    os._exit(0)


def report(found: dict[str, Any]) -> None:
    """One row of the table."""
    subject = subject_of(
        ModelConfig(preset=found["preset"]),
        seq_len=found["seq_len"],
        vocab_size=found["vocab_size"],
    )
    assert subject is not None
    config = TrainConfig(steps=4, workers=WORKERS, **found["changes"])
    memory = peak_memory(subject, config)
    measured = max(size for phase, size in found["phases"].items() if phase != "rest")
    # The process itself is the baseline, which was there before.
    predicted = memory.total_bytes - memory.process
    sizes = (found["baseline_bytes"], measured, predicted)
    rate = config.global_batch * found["seq_len"] / found["step_s"]
    expected = pace(
        subject, config, worker_peak=found["worker_peak"], num_samples=None
    ).tokens_per_s
    assert expected is not None
    cells = [found["case"], *(f"{size / 2**20:,.0f}" for size in sizes)]
    cells += [f"{predicted / measured - 1:+.0%}"]
    cells += [f"{rate:,.0f}", f"{expected:,.0f}", f"{expected / rate - 1:+.0%}"]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
