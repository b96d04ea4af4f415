"""MLflow, where MLFLOW_TRACKING_URI says, else a SQLite store in `<work>/mlflow`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raylm.train.trackers.about import About
from raylm.train.trackers.mark import Mark
from raylm.train.trackers.scalars import scalars

FOLDER = "mlflow"
_BATCH = 1000
"""Metrics that MLflow takes at once; of parameters a tenth."""
_VALUE_CHARACTERS = 500


class MLflow:
    """One MLflow run for a raylm run. A point cannot be taken back: a step that is done again
    after a resume keeps its first one.
    """

    def __init__(self, work: Path, mark: Mark, about: About) -> None:
        # MLflow counts its users over the network unless it is told not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        place: str | None = None
        if not uri:
            folder = work / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            uri, place = f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri()
        self._client, self._mark = MlflowClient(tracking_uri=uri), mark
        if mark.run:
            self._client.update_run(mark.run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "raylm")
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name, place)
        run = self._client.create_run(experiment, run_name=about.run_id)
        mark.run = run.info.run_id
        parameters = [
            Param(key, str(value)[:_VALUE_CHARACTERS]) for key, value in about.config.items()
        ]
        tags = [RunTag("raylm.run", about.run_id), RunTag("raylm.work", str(work))]
        self._client.log_batch(mark.run, tags=tags)
        for start in range(0, len(parameters), _BATCH // 10):
            self._client.log_batch(mark.run, params=parameters[start : start + _BATCH // 10])

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Send lines of metrics.jsonl."""
        from mlflow.entities import Metric

        points = []
        for line in lines:
            step = int(line["step"])
            new = {k: v for k, v in scalars(line).items() if not self._mark.is_known(k, step)}
            points += [Metric(k, v, int(line["time"] * 1000), step) for k, v in new.items()]
            self._mark.note(new, step)
        for start in range(0, len(points), _BATCH):
            self._client.log_batch(self._mark.run, metrics=points[start : start + _BATCH])

    def close(self, *, finished: bool) -> None:
        """End the run."""
        status = "FINISHED" if finished else "KILLED"
        self._client.set_terminated(self._mark.run, status=status)
