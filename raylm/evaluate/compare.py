"""`compare`: how far a candidate is from its reference; and the gate that may refuse it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raylm.artifact import Artifact
from raylm.config.compress import GateConfig
from raylm.errors import GateError
from raylm.evaluate.figures import Figure, difference_figures
from raylm.evaluate.spread import spread
from raylm.progress import Report


def compare(
    candidate: Path,
    reference: Path,
    dataset: Artifact,
    *,
    max_samples: int | None,
    batch: int,
    num_cpus: float,
    stage: str,
    report: Report,
) -> dict[str, Figure]:
    """KL, top-1 agreement and perplexities of two model folders on the held-out split."""
    rows = spread(
        "raylm.evaluate.compare:score",
        (candidate, reference),
        dataset.path,
        max_samples=max_samples,
        batch=batch,
        num_cpus=num_cpus,
        stage=stage,
        report=report,
    )
    return difference_figures(rows)


def score(arguments: tuple[Path, ...], dataset: Path, rows: np.ndarray) -> np.ndarray:
    """One batch of `sequence_differences`; runs in a Ray task."""
    from raylm.evaluate.scores import held_out, load_for_scoring, sequence_differences

    candidate, reference = (load_for_scoring(folder, dataset) for folder in arguments)
    data = held_out(arguments[1], dataset)
    return sequence_differences(candidate, reference, data.source.in_order(rows), data.objective)


def violations(figures: dict[str, float], gate: GateConfig) -> list[str]:
    """What of a gate is not met, one sentence each; not a number never passes."""
    found = []
    if not figures["kl"] <= gate.max_kl:
        found.append(f"KL {figures['kl']:.4g} is above max_kl={gate.max_kl:g}")
    if not figures["top1_agreement"] >= gate.min_top1_agreement:
        found.append(
            f"top-1 agreement {figures['top1_agreement']:.4g} is below "
            f"min_top1_agreement={gate.min_top1_agreement:g}"
        )
    if not figures["perplexity_ratio"] <= gate.max_perplexity_ratio:
        found.append(
            f"perplexity ratio {figures['perplexity_ratio']:.4g} is above "
            f"max_perplexity_ratio={gate.max_perplexity_ratio:g}"
        )
    return found


def hold_gate(figures: dict[str, Figure], gate: GateConfig, *, what: str) -> None:
    """Refuse a candidate that is too far from its reference.

    Raises:
        GateError: naming every limit that is not kept.
    """
    found = violations({name: figure.value for name, figure in figures.items()}, gate)
    if found:
        raise GateError(
            f"{what} is not accepted: {'; '.join(found)}",
            code="gate-not-met",
            hint="nothing was registered; train longer, or loosen the gate in the config",
        )
