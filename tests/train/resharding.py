"""Trainings that change their number of ranks, for test_reshard.py; run as a script, without Ray.

Ranks are forked from a process that has loaded the libraries once, so that three groups of them
cost little more than one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from raylm.config.model import ModelConfig
from raylm.config.train import TrainConfig
from raylm.train.checkpoint import complete_checkpoints
from raylm.train.loop import Job
from raylm.train.reshard import _merge
from raylm.train.worker import Worker

STEPS = 12
CHANGES = {4: 1, 8: 2}
"""Ranks after so many steps; there are two before."""
CASES: dict[str, dict[str, dict[str, Any]]] = {
    precision: {f"zero{zero}": {"zero": zero, "precision": precision} for zero in (0, 1, 2, 3)}
    for precision in ("fp32", "bf16")
}
CASES["fp32"]["uneven"] = {"zero": 3, "global_batch": 5, "micro_batch": 2}


def main(precision: str, data: Path, out: Path) -> None:
    """Train each case whole on two ranks, and again from its checkpoints on others."""
    pieces = [("whole", 2, 0, STEPS)]
    pieces += [(f"from {begin}", ranks, begin, begin + 4) for begin, ranks in CHANGES.items()]
    for name, num_ranks, begin, end in pieces:
        work = partial(
            _cases,
            CASES[precision],
            data,
            out,
            num_ranks=num_ranks,
            begin=begin,
            end=end,
            name=name,
        )
        _in_ranks(num_ranks, work, out)


def _in_ranks(num: int, work: Callable[[int], None], out: Path) -> None:
    place = out / f"group-{len(list(out.glob('group-*')))}"
    place.touch()
    children = []
    for rank in range(num):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _join(place, rank, num)
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * num, codes


def _join(place: Path, rank: int, num: int) -> None:
    torch.set_num_threads(1)
    # DeepSpeed asks for them, and then takes the group that is there.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num)}
    store = f"file://{place}.store"
    limit = timedelta(seconds=120)
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=num, timeout=limit)


def _cases(
    cases: dict[str, dict[str, Any]], data: Path, out: Path, rank: int, *,
    num_ranks: int, begin: int, end: int, name: str,
) -> None:  # fmt: skip
    found = {}
    next_change = min((step for step in CHANGES if step > begin), default=None)
    for case, changes in cases.items():
        config = TrainConfig.model_validate(
            {
                "steps": STEPS,
                "global_batch": 4,
                "micro_batch": 1,
                "workers": {"max": 2},
                "optimizer": {"lr": 0.01},
                "schedule": {"kind": "constant", "warmup": 0},
                "checkpoint": {"keep": 3},
                **changes,
            }
        )
        work = out / case
        if rank == 0:
            work.mkdir(exist_ok=True)
        torch.distributed.barrier()
        model = ModelConfig(
            preset="llama-1m", hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2
        )
        job = Job(model, config, data, work, 0, "c", resume=begin > 0, result=work / "model")
        worker = Worker(job, rank=rank, world_size=num_ranks)
        worker.restore()
        assert worker.done == begin
        differences = _differences(worker, work, rank) if begin else []
        losses = []
        while worker.done < end:
            losses.append(worker.step().loss)
            if worker.done == next_change:
                worker.save()
        found[case] = {"losses": losses, "differences": differences, **_books(worker)}  # fmt: skip
        worker.close()
        torch.distributed.barrier()
    if rank == 0:
        (out / f"{name}.json").write_text(json.dumps(found))


def _differences(worker: Worker, work: Path, rank: int) -> list[str]:
    """Tensors of weights and optimizer that are not those of the checkpoint, bit for bit.

    Both are put together from what the ranks save of them, by DeepSpeed's own conversion.
    """
    saved, again = complete_checkpoints(work / "checkpoints")[0].state, work / "again"
    worker._engine.save_checkpoint(str(again), tag="state", save_latest=False)
    torch.distributed.barrier()
    if rank or worker._config.zero == 0:
        return []
    for name, state in (("saved", saved), ("moved", again / "state")):
        shutil.rmtree(work / name, ignore_errors=True)
        _merge(state, work / name)
    names = sorted(p.relative_to(work / "saved") for p in work.glob("saved/zero/*/*.pt"))
    assert len(names) >= 3 * 15, names
    pairs = [(torch.load(work / "saved" / n), torch.load(work / "moved" / n)) for n in names]
    return [str(n) for n, (a, b) in zip(names, pairs, strict=True) if not _is_same(a, b)]


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    return torch.equal(one, other) if torch.is_tensor(one) else bool(one == other)


def _books(worker: Worker) -> dict[str, list[float]]:
    """What the optimizer keeps beside tensors."""
    optimizer = getattr(worker._engine.optimizer, "optimizer", worker._engine.optimizer)
    return {
        "steps": sorted({float(s["step"]) for s in optimizer.state.values() if "step" in s}),
        "decays": [group["weight_decay"] for group in optimizer.param_groups],
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
