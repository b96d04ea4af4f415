"""Trainings in processes of their own that start in a moment: forked off one that has imported.

`python -m tests.train.forks` reads requests from stdin, a JSON object a line, and answers each
with one on stdout. A training may be told to kill itself before the n-th thing that a save does
to the disk; what a save does is recorded by wrapping the functions that do it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAVE = 2
"""The save that is recorded and killed, from 1."""
EVERY = 2
STEPS = 6


@dataclass
class Outcome:
    """What became of one training."""

    code: int
    """Exit code; -9 for one that was killed."""
    began: int = -1
    """Step that it went on from."""
    error: list[str] | None = None
    """Code and message of a RaylmError."""
    trace: list[str] = field(default_factory=list)
    """What the recorded save did to the disk, in order."""


class Forks:
    """The process that forks, as the test sees it."""

    def __init__(self) -> None:
        # In a mount name space of its own: what it mounts is gone with it.
        command = [sys.executable, "-m", "tests.train.forks"]
        if self.can_mount():
            command = ["unshare", "-rm", *command]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
                 "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
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

        Options: `kill_at` (index into the trace), `keep`, `precision`, `zero`.
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


class Recorder:
    """Notes each change of the disk while a save is under way, and may kill before one."""

    def __init__(self, work: Path, kill_at: int | None) -> None:
        self.trace: list[str] = []
        self.is_on = False
        self._work, self._kill_at = work, kill_at

    def event(self, what: str, path: object = "") -> None:
        if not self.is_on:
            return
        if len(self.trace) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        name = str(path).removeprefix(f"{self._work}/checkpoints").removeprefix("/")
        self.trace.append(f"{what} {name}".strip())

    def install(self) -> None:
        import torch

        from raylm.train import generators
        from raylm.train.checkpoint import Checkpointer

        for name in ("mkdir", "rename", "unlink", "rmdir"):
            self._wrap(os, name, lambda path, *_: str(path))
        self._wrap(os, "fsync", lambda number: os.readlink(f"/proc/self/fd/{number}"))
        # A file that is being written has its first half, and then all of it.
        self._wrap_writer(torch, "save", lambda args: args[1])
        self._wrap_writer(generators, "save_array", lambda args: args[0])
        save, calls = Checkpointer.save, [0]

        def recorded(*args: Any, **options: Any) -> Path:
            calls[0] += 1
            self.is_on = calls[0] == SAVE
            found = save(*args, **options)
            self.event("saved")
            self.is_on = False
            return found

        Checkpointer.save = recorded  # type: ignore[method-assign]

    def _wrap(self, place: Any, name: str, path: Callable[..., str]) -> None:
        real = getattr(place, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self.event(name, path(*args))
            return real(*args, **options)

        setattr(place, name, wrapped)

    def _wrap_writer(self, place: Any, name: str, path: Callable[[tuple[Any, ...]], Any]) -> None:
        real = getattr(place, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self.event("write", path(args))
            found = real(*args, **options)
            if self.is_on and len(self.trace) == self._kill_at:
                file = path(args)
                os.truncate(file, os.path.getsize(file) // 2)
            self.event("half", path(args))
            return found

        setattr(place, name, wrapped)


def _train(request: dict[str, Any]) -> dict[str, Any]:
    """In the fork: one training; returns what `Outcome` holds."""
    import torch

    from raylm.config.model import ModelConfig
    from raylm.config.train import TrainConfig
    from raylm.errors import RaylmError
    from raylm.train import loop
    from raylm.train.signs import Beat, Sign
    from raylm.train.worker import Worker

    work = Path(request["work"])
    work.mkdir(exist_ok=True)
    recorder = Recorder(work, request.get("kill_at"))
    if not (work / "checkpoints").exists() or request.get("kill_at") is not None:
        recorder.install()
    torch.set_num_threads(1)
    place = work / f"group-{os.getpid()}"
    torch.distributed.init_process_group("gloo", f"file://{place}", rank=0, world_size=1)
    config = TrainConfig(
        steps=STEPS, global_batch=4, micro_batch=2, workers=1,
        precision=request.get("precision", "fp32"), zero=request.get("zero", 2),
        checkpoint={"every_steps": EVERY, "keep": request.get("keep", 1)},
        optimizer={"lr": 0.01}, schedule={"kind": "constant", "warmup": 0},
    )  # fmt: skip
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}
    job = loop.Job(
        ModelConfig(preset="llama-1m", **shape), config, Path(request["data"]), work, 0, "c",
        resume=True, result=work / "model",
    )  # fmt: skip
    worker = Worker(job, rank=0, world_size=1)
    beat = Beat(work, Sign(0, os.getpid(), 0.0, "here", "node"))
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


def _forked(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(2, 1)
            text = json.dumps({**_train(request), "modules": list(sys.modules)})
            with os.fdopen(writing, "w") as out:
                out.write(text)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found = json.loads(text) if text else {}
    # What a training imported late, the next ones find there: that is most of their time.
    for name in found.pop("modules", []):
        if name not in sys.modules:
            with suppress(Exception):
                importlib.import_module(name)
    return {**found, "code": code}


def _mount(place: str, options: str) -> None:
    target = os.path.realpath(place)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", target], check=True)


def main() -> None:
    # Before the first fork, once for all.
    import deepspeed  # noqa: F401

    import raylm.train.worker  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
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
