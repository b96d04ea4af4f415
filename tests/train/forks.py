"""Trainings in processes of their own that start in a moment: forked off one that has imported.

`python -m tests.train.forks` reads requests from stdin, a JSON object a line, and answers each
with one on stdout. A training has one rank or several, joined by gloo. One of them may be told to
kill itself, or all, before the n-th thing that it does to the disk in a save.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.train.recorder import Recorder

EVERY = 2
STEPS = 6
_PEERS_S = 60.0
"""What ranks have to end by themselves when one of them is gone."""


@dataclass
class Outcome:
    """What became of one training."""

    codes: list[int]
    """Exit code of each rank; -9 for one that was killed."""
    traces: list[list[str]]
    """What each rank did to the disk in the recorded save, in order."""
    began: int = -1
    """Step that it went on from."""
    error: list[str] | None = None
    """Code and message of a RaylmError."""

    @property
    def code(self) -> int:
        """The first rank's."""
        return self.codes[0]

    @property
    def trace(self) -> list[str]:
        """The first rank's."""
        return self.traces[0]


class Forks:
    """The process that forks, as the test sees it."""

    def __init__(self) -> None:
        # In a mount name space of its own: what it mounts is gone with it.
        command = [sys.executable, "-m", "tests.train.forks"]
        if self.can_mount():
            command = ["unshare", "-rm", *command]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    @staticmethod
    def can_mount() -> bool:
        """Whether this user may mount a file system in a name space."""
        command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def train(self, data: Path, work: Path, **options: Any) -> Outcome:
        """Train to the end, or to the kill; goes on from what lies in `work`.

        Options: `kill_at` (index into the trace of `kill_rank`, the first), `kill` (`one` or
        `all`), `ranks`, `steps`, `keep`, `precision`, `zero`.
        """
        return Outcome(**self.ask(data=data, work=work, **options))

    def mount(self, place: Path, num_bytes: int, *, again: bool = False) -> None:
        """Give a folder a file system of so many bytes, or that one another size."""
        place.mkdir(parents=True, exist_ok=True)
        self.ask(mount=place, options=f"{'remount,' if again else ''}size={num_bytes}")

    def read(self, path: Path) -> list[str]:
        """Names in a folder that may lie in what was mounted."""
        found: list[str] = self.ask(list=path)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _train(request: dict[str, Any], rank: int) -> dict[str, Any]:
    """In the fork: one rank of a training; returns its part of what `Outcome` holds."""
    import torch

    from raylm.config.model import ModelConfig
    from raylm.config.train import TrainConfig
    from raylm.errors import RaylmError
    from raylm.train import loop
    from raylm.train.signs import Beat, Sign
    from raylm.train.worker import Worker

    work, num_ranks = Path(request["work"]), request.get("ranks", 1)
    recorder = _recorder(request, rank)
    torch.set_num_threads(1)
    # DeepSpeed asks for them, and then takes the group that is there.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    store = f"file://{_group(request)}/store"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=num_ranks)
    config = TrainConfig(
        steps=request.get("steps", STEPS), global_batch=4, micro_batch=2,
        workers={"min": 1, "max": 2},
        precision=request.get("precision", "fp32"), zero=request.get("zero", 2),
        checkpoint={"every_steps": EVERY, "keep": request.get("keep", 1)},
        optimizer={"lr": 0.01}, schedule={"kind": "constant", "warmup": 0},
    )  # fmt: skip
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}
    job = loop.Job(
        ModelConfig(preset="llama-1m", **shape), config, Path(request["data"]), work, 0, "c",
        resume=True, result=work / "model",
    )  # fmt: skip
    worker = Worker(job, rank=rank, world_size=num_ranks)
    beat = Beat(work, Sign(rank, os.getpid(), 0.0, "here", "node"))
    found: dict[str, Any] = {}
    try:
        worker.restore()
        found["began"] = worker.done
        loop._train(worker, config, beat)
        worker.write_model()
        worker.close()
    except RaylmError as error:
        found["error"] = [error.code, error.message]
    return {**found, "trace": recorder.trace}


def _group(request: dict[str, Any]) -> Path:
    """Where the ranks of a training find each other."""
    return Path(request["work"], f"group-{request['number']}")


def _recorder(request: dict[str, Any], rank: int) -> Recorder:
    """What notes this rank's doings, and kills it, or all, where that is asked."""
    group = _group(request)
    (group / f"rank-{rank}").write_text(str(os.getpid()))

    def kill() -> None:
        for file in group.glob("rank-*") if request.get("kill") == "all" else ():
            if file.name != f"rank-{rank}":
                os.kill(int(file.read_text()), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    at, work = request.get("kill_at"), Path(request["work"])
    is_mine = rank == request.get("kill_rank", 0)
    recorder = Recorder(work, at if is_mine else None, kill)
    if at is not None or not (work / "checkpoints").exists():
        recorder.install()
    return recorder


def _forked(request: dict[str, Any]) -> dict[str, Any]:
    group = _group(request)
    group.mkdir(parents=True)
    num_ranks = request.get("ranks", 1)
    codes = _wait_for([_fork(request, rank) for rank in range(num_ranks)])
    said = [group / f"said-{rank}.json" for rank in range(num_ranks)]
    found = [json.loads(file.read_text()) if file.exists() else {} for file in said]
    # What a training imported late, the next ones find there: that is most of their time.
    for name in found[0].pop("modules", []):
        if name not in sys.modules:
            with suppress(Exception):
                importlib.import_module(name)
    first = {key: found[0][key] for key in ("began", "error") if key in found[0]}
    return {**first, "codes": codes, "traces": [each.get("trace", []) for each in found]}


def _fork(request: dict[str, Any], rank: int) -> int:
    """Start a rank; its process."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(2, 1)
            text = json.dumps({**_train(request, rank), "modules": list(sys.modules)})
            (_group(request) / f"said-{rank}.json").write_text(text)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def _wait_for(pids: list[int]) -> list[int]:
    """Exit codes; once one is gone before its end, the others have only so much time."""
    codes: dict[int, int] = {}
    deadline = math.inf
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
                if codes[pid]:
                    deadline = min(deadline, time.monotonic() + _PEERS_S)
        if time.monotonic() > deadline:
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGTERM)
            deadline = math.inf
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def _mount(place: str, options: str) -> None:
    target = os.path.realpath(place)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", target], check=True)


def main() -> None:
    # Before the first fork, once for all.
    import deepspeed  # noqa: F401

    import raylm.train.worker  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for number, line in enumerate(sys.stdin):
        request = {**json.loads(line), "number": number}
        answer: Any = None
        if "mount" in request:
            _mount(request["mount"], request["options"])
        elif "list" in request:
            answer = sorted(os.listdir(request["list"]))
        else:
            answer = _forked(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
