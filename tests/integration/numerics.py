"""The cases of which all must give the same losses, by two workers and by one."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from raylm.config.data import Format
from raylm.config.train import ObjectiveName
from tests.train.records import NUM_RECORDS, PACKED_ROWS, write_dataset
from tests.train.series import Case

FORMAT_OF: dict[ObjectiveName, Format] = {
    "causal": "text", "sft": "chat", "seq2seq": "pairs", "mlm": "text", "classify": "labels",
    "dpo": "preferences",
}  # fmt: skip
# AdamW's step does not depend on the scale of a gradient, and clipping hides it too: with a
# large epsilon and without clipping a gradient that is divided once too often shows.
OPTIMIZER = {"lr": 0.03, "eps": 1e-3, "clip_norm": 0.0}
STAGES, ACCUMULATIONS, LAYOUTS = (0, 1, 2, 3), (1, 2), ("packed", "padded")
MATRIX = list(product(STAGES, ACCUMULATIONS, LAYOUTS))


def name_of(stage: int, accumulation: int, layout: str) -> str:
    """Of a case of the matrix."""
    return f"zero{stage} accumulation{accumulation} {layout}"


def all_cases(root: Path) -> dict[str, Case]:
    """The matrix, every objective, and every stage in bf16; their data is written below `root`.

    In the matrix and in bf16 each step is on all records; of the objectives on other ones.
    """
    rows = {"packed": PACKED_ROWS, "padded": NUM_RECORDS}
    chat = {
        layout: write_dataset(root / f"chat-{layout}", "chat", packed=layout == "packed")
        for layout in LAYOUTS
    }
    cases = {
        name_of(stage, num, layout): Case(
            "sft", chat[layout], rows[layout], num, changes={"zero": stage, "optimizer": OPTIMIZER}
        )
        for stage, num, layout in MATRIX
    }
    for name, format in FORMAT_OF.items():
        data = write_dataset(root / name, format)
        changes = {"zero": 2, "optimizer": OPTIMIZER}
        cases[name] = Case(name, data, PACKED_ROWS // 2, 2, changes=changes)
    for stage in STAGES:
        changes = {"zero": stage, "precision": "bf16", "optimizer": OPTIMIZER}
        cases[f"bf16 zero{stage}"] = Case("sft", chat["packed"], PACKED_ROWS, 2, changes=changes)
    return cases
