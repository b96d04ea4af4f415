"""Quantized models that are slower than their originals: which are told, and which are not."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raylm.engine.protocol import Stats
from raylm.serve.backend import ReplicaState
from raylm.serve.catalog import Catalog, Entry, ServedModel
from raylm.serve.readiness import Readiness
from raylm.serve.slower import Pace, paces, slower_than_originals

FULL = Pace("notes@f32", "notes", "f32", "EPYC", 200.0)
SMALL = Pace("notes@int8", "notes", "int8", "EPYC", 120.0)


def test_a_quantized_model_that_is_slower_is_told_with_both_figures():
    assert slower_than_originals([FULL, SMALL]) == [
        "notes@int8 (int8) is slower than notes@f32 (f32) on EPYC: 120 tokens against 200 a second "
        "of processor time"
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokens_per_cpu_s": 300.0}, "it is faster"),
        ({"tokens_per_cpu_s": 185.0}, "that is noise"),
        ({"tokens_per_cpu_s": 0.0}, "nothing was measured"),
        ({"processor": "Xeon"}, "another machine is no comparison"),
        ({"kin": "letters"}, "it was made from something else"),
        ({"weights": "bf16"}, "it is not quantized"),
    ],
)
def test_nothing_is_said_where_nothing_is_known_to_be_slower(change: dict[str, Any], why: str):
    assert slower_than_originals([FULL, replace(SMALL, **change)]) == [], why


def test_of_several_replicas_the_fastest_counts():
    slow = replace(SMALL, tokens_per_cpu_s=90.0)
    assert slower_than_originals([FULL, slow, replace(SMALL, tokens_per_cpu_s=210.0)]) == []
    assert "150 tokens against 200" in "".join(
        slower_than_originals([FULL, slow, replace(SMALL, tokens_per_cpu_s=150.0)])
    )


def test_where_there_are_several_processors_the_worst_is_told_once():
    xeon = [replace(FULL, processor="Xeon"), replace(SMALL, processor="Xeon", tokens_per_cpu_s=50)]
    (told,) = slower_than_originals([FULL, SMALL, *xeon])
    assert "on Xeon: 50 tokens against 200" in told


@pytest.mark.parametrize(
    ("models", "kin"),
    [
        (
            [
                ServedModel("notes@f32", Path("a"), "aa", variant="f32"),
                ServedModel("notes@int8", Path("b"), "bb", variant="int8"),
            ],
            ["notes", "notes"],
        ),
        (
            [
                ServedModel("notes", Path("a"), "aa"),
                ServedModel("small", Path("b"), "bb", parents=("dataset", "aa")),
                ServedModel("smaller", Path("c"), "cc", parents=("bb",)),
            ],
            ["notes", "notes", "notes"],
        ),
        (
            [ServedModel("a", Path("a")), ServedModel("b", Path("b"), parents=("elsewhere",))],
            ["a", "b"],
        ),
    ],
)
def test_models_are_kin_as_variants_or_by_what_they_were_made_from(models, kin):
    states = {
        model.name: [ReplicaState("r", Stats(), None, "int8", "EPYC", 10.0)] for model in models
    }
    found = paces(models, states)
    assert [pace.kin for pace in found] == kin
    assert found[0] == Pace(models[0].name, kin[0], "int8", "EPYC", 10.0)


@dataclass
class Replicas:
    """A backend of which only the states are asked."""

    state: ReplicaState

    async def states(self) -> list[ReplicaState]:
        return [self.state]


def test_a_gateway_logs_it_once(caplog):
    def entry(name: str, weights: str, rate: float) -> Entry:
        model = ServedModel(f"notes@{name}", Path(name), name, variant=name)
        backend: Any = Replicas(ReplicaState("r", Stats(), None, weights, "EPYC", rate))
        unused: Any = None
        return Entry(model, backend, unused, None)

    readiness = Readiness(Catalog([entry("f32", "f32", 200), entry("int8", "int8", 100)]))
    readiness._asked_s = -1e9

    async def ask() -> list[str]:
        first = await readiness.slower()
        readiness._asked_s = -1e9
        assert await readiness.slower() == first
        return first

    with caplog.at_level(logging.WARNING, "raylm.serve"):
        told = asyncio.run(ask())
    assert [record.getMessage() for record in caplog.records] == told
    assert len(told) == 1 and "100 tokens against 200" in told[0]
