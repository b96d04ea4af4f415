"""`evaluate`: what a model knows of text it has never seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from raylm.artifact import Artifact
from raylm.config.evaluate import EvaluateConfig
from raylm.data.shards import PackedSplit
from raylm.evaluate.figures import held_out_figures
from raylm.evaluate.spread import spread
from raylm.model.folder import architecture_of, read_config
from raylm.stage import Context
from raylm.train.objectives.objective import usual

CODE_VERSION = 1


def evaluate(
    config: EvaluateConfig, model: Artifact, dataset: Artifact, context: Context
) -> Artifact:
    """Measure a model on the dataset's held-out split; a report artifact.

    Raises:
        DataError: there is no held-out text.
    """
    rows = spread(
        "raylm.evaluate.evaluate:score",
        (model.path,),
        dataset.path,
        max_samples=config.max_samples,
        batch=config.batch,
        num_cpus=config.num_cpus,
        stage="evaluate",
        report=context.report,
    )
    split = PackedSplit.open(dataset.path, "held_out")
    objective = usual(split.format, architecture_of(read_config(model.path)))
    found = held_out_figures(rows, objective)
    figures = {name: figure.to_json() for name, figure in found.items()}
    body = {
        "model": model.digest,
        "dataset": dataset.digest,
        "objective": objective,
        "sequences": len(rows),
        "targets": int(rows[:, 1].sum()),
        "figures": figures,
    }
    with context.store.draft("report", f"{context.name}-evaluation") as draft:
        (draft.path / "evaluation.json").write_text(json.dumps(body, indent=2) + "\n")
        return draft.commit(
            parents=(model, dataset),
            config=config.model_dump(mode="json"),
            metrics={name: figure["value"] for name, figure in figures.items()},
        )


def score(arguments: tuple[Path, ...], dataset: Path, rows: np.ndarray) -> np.ndarray:
    """One batch of `sequence_scores`; runs in a Ray task."""
    from raylm.evaluate.scores import held_out, load_for_scoring, sequence_scores

    data, model = held_out(arguments[0], dataset), load_for_scoring(arguments[0], dataset)
    batch = data.source.in_order(rows)
    return sequence_scores(model, batch, data.objective, data.token_bytes)
