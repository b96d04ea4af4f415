"""Windows of samples that the divergence guard left out, and the documents in them.

    <work>/skipped.json     [{"window", "step", "why", "samples", "documents"}, ...]

Written before the run goes back, so that a run that is killed right then decides the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raylm.artifact import write_atomic
from raylm.data.shards import PackedSplit

SKIPPED = "skipped.json"


@dataclass(frozen=True, slots=True)
class Skip:
    """One window that is not trained on."""

    window: int
    step: int
    """Steps done before the bad one."""
    why: str
    samples: tuple[int, ...]
    """Rows of the dataset's train split."""
    documents: tuple[dict[str, Any], ...]
    """`id` and `source` of every document that has a part in them, in the order of the rows."""


def read_skips(work: Path) -> list[Skip]:
    """What was skipped so far, oldest first."""
    try:
        raw = json.loads((work / SKIPPED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [
        Skip(
            **values
            | {"samples": tuple(values["samples"]), "documents": tuple(values["documents"])}
        )
        for values in raw
    ]


def write_skip(work: Path, skip: Skip) -> None:
    """Add one."""
    values = [asdict(s) for s in (*read_skips(work), skip)]
    write_atomic(work / SKIPPED, json.dumps(values, indent=1) + "\n")


def documents_of(split: PackedSplit, samples: tuple[int, ...]) -> tuple[dict[str, Any], ...]:
    """The documents in some samples, each once."""
    pieces = (piece for sample in samples for piece in split.trace(sample))
    found = {piece.document_id: piece.source for piece in pieces}
    return tuple({"id": id, "source": source} for id, source in found.items())
