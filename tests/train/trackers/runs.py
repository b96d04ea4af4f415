"""A metrics.jsonl as the trainer writes it, and what ends up in TensorBoard's files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from raylm.train.metrics import METRICS, MetricsLog

Points = dict[str, dict[int, list[float]]]


class Run:
    """Steps of a training, each with a loss of its own, and restarts."""

    def __init__(self, work: Path) -> None:
        self.work, self.clock, self.done = work, 1000.0, 0
        self.losses: dict[int, float] = {}
        work.mkdir(parents=True, exist_ok=True)
        self.log = MetricsLog(work / METRICS, from_step=0)

    def steps(self, count: int, **more: Any) -> None:
        for _ in range(count):
            self.done, self.clock = self.done + 1, self.clock + 1
            self.losses[self.done] = 10.0 / self.done + self.clock / 1e6
            self.log.write(
                step=self.done, time=self.clock, loss=self.losses[self.done], mfu=None,
                lr=0.001, event="start", **more,
            )  # fmt: skip

    def validate(self) -> None:
        self.clock += 1
        self.log.write(step=self.done, time=self.clock, held_out_loss=5.0)

    def resume(self, step: int) -> None:
        """Go back to a checkpoint, as a killed run or one that diverged does."""
        self.log.close()
        self.log, self.done = MetricsLog(self.work / METRICS, from_step=step), step


def events(folder: Path) -> Points:
    """Points by name and step, as TensorBoard shows them: a START of a session takes away what
    was written before of its step and later (EventAccumulator._CheckForRestartAndMaybePurge).
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: Points = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status == SessionLog.START:
                for steps in found.values():
                    for step in [s for s in steps if s >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                steps = found.setdefault(value.tag, {})
                steps.setdefault(event.step, []).append(value.simple_value)
    return found
