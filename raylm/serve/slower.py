"""Quantized models that are slower than what they were made from: pure.

Integers save memory, and time only where the processor has kernels for them; who serves both is
to know when the smaller one costs more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from raylm.serve.backend import ReplicaState
from raylm.serve.catalog import ServedModel

_NOISE = 0.9
"""Of two measurements of the same model, on cores that others use too."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What one replica measured when it loaded its model."""

    name: str
    """Of the model as it is served; variants each have their own."""
    kin: str
    """What a model has in common with those it was made from or together with."""
    weights: str
    """Their stored precision, as `Capabilities.weights`."""
    processor: str
    """Paces are compared on one kind of processor only."""
    tokens_per_cpu_s: float
    """0: not measured."""


def slower_than_originals(paces: Iterable[Pace]) -> list[str]:
    """A sentence for each quantized model that is slower than an unquantized one beside it.

    Of several replicas the fastest counts, on the processor where the difference is largest.
    """
    best: dict[tuple[str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    for pace in paces:
        if pace.tokens_per_cpu_s > 0:
            beside = best[pace.kin, pace.processor]
            one = (pace.name, pace.weights)
            beside[one] = max(beside.get(one, 0.0), pace.tokens_per_cpu_s)
    worst: dict[str, tuple[float, str]] = {}
    for (_, processor), beside in best.items():
        originals = [(rate, one) for one, rate in beside.items() if not _is_quantized(one[1])]
        if not originals:
            continue
        full_rate, (full, full_weights) = max(originals)
        for (name, weights), rate in beside.items():
            share = rate / full_rate
            if _is_quantized(weights) and share < min(_NOISE, worst.get(name, (1.0, ""))[0]):
                text = (
                    f"{name} ({weights}) is slower than {full} ({full_weights}) on {processor}: "
                    f"{rate:.0f} tokens against {full_rate:.0f} a second of processor time"
                )
                worst[name] = share, text
    return [worst[name][1] for name in sorted(worst)]


def paces(
    models: Sequence[ServedModel], states: Mapping[str, Sequence[ReplicaState]]
) -> list[Pace]:
    """What the replicas of all models measured; `states` are by the models' names."""
    by_digest = {model.digest: model for model in models if model.digest}
    return [
        Pace(model.name, _kin(model, by_digest), s.weights, s.processor, s.tokens_per_cpu_s)
        for model in models
        for s in states.get(model.name, ())
    ]


def _kin(model: ServedModel, by_digest: Mapping[str, ServedModel]) -> str:
    """The name of the model whose variant it is, or of that it was made from, if it is served."""
    if model.variant is not None:
        return model.model
    parent = next((by_digest[digest] for digest in model.parents if digest in by_digest), None)
    return model.name if parent is None else _kin(parent, by_digest)


def _is_quantized(weights: str) -> bool:
    return weights.startswith("int")
