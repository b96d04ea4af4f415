"""What went in, what stayed, and why the rest did not: report.json and set_aside.jsonl."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.config.data import DataConfig
from raylm.data.read import most_suggested
from raylm.data.scan import Corpus, SetAside
from raylm.data.select import Selection
from raylm.data.sources import SourceFile
from raylm.errors import DataError


def check_readable(corpus: Corpus, config: DataConfig) -> None:
    """Stop when too little of the corpus could be read.

    Raises:
        DataError: nothing was readable, or more than `max_bad` of the JSONL records were not.
    """
    bad = [item for item in corpus.set_aside if item.jsonl]
    num_records = len(bad) + int((corpus.line > 0).sum())
    if len(bad) > config.max_bad * num_records:
        raise _too_many_bad(corpus, bad, num_records, config)
    if len(corpus):
        return
    if not corpus.set_aside:
        raise DataError(
            f"there is no document in {', '.join(config.paths)}",
            code="data-empty",
            hint="the files are there, but hold no record; check data.paths",
        )
    first = corpus.set_aside[0]
    raise DataError(
        f"none of {len(corpus.set_aside)} files is text, e.g. {first.source}: {first.detail}",
        code="data-all-binary",
        hint="raylm reads plain text and JSONL, both also as .gz: extract the text first, or "
        "narrow data.paths and data.pattern",
    )


def check_usable(corpus: Corpus, refused: Sequence[SetAside], config: DataConfig) -> None:
    """Stop when the second pass had to set too many records aside as well.

    Raises:
        DataError: more than `max_bad` of all records cannot be used.
    """
    num_bad = len(refused) + len(corpus.set_aside)
    num_records = len(corpus) + len(corpus.set_aside)
    if refused and num_bad > config.max_bad * num_records:
        raise _too_many_bad(corpus, refused, num_records, config)


def _too_many_bad(
    corpus: Corpus, bad: Sequence[SetAside], num_records: int, config: DataConfig
) -> DataError:
    reasons = Counter(item.reason for item in bad)
    reason = min(reasons, key=lambda r: (-reasons[r], r))
    first = next(item for item in bad if item.reason == reason)
    message = (
        f"{first.source}: {first.detail} ({len(bad)} of {num_records} records cannot be used, "
        f"data.max_bad={config.max_bad:g})"
    )
    if reason == "no-field":
        return DataError(message, code="data-no-field", hint=_field_hint(corpus, config))
    return DataError(
        message,
        code="data-bad-records",
        hint="repair the records, or raise data.max_bad to set them aside",
    )


def _field_hint(corpus: Corpus, config: DataConfig) -> str:
    suggested = most_suggested(corpus.suggestions)
    if config.format == "text":
        field = repr(suggested) if suggested else "the field that holds the text"
        return f"set data.text_field to {field}"
    return f"set {suggested or 'data.fields to the names that the records use'}"


def set_aside_lines(items: Sequence[SetAside]) -> str:
    """JSON lines of what could not be read, in source order."""
    return "".join(
        json.dumps(
            {"source": i.source, "reason": i.reason, "detail": i.detail, "num_bytes": i.num_bytes},
            ensure_ascii=False,
        )
        + "\n"
        for i in items
    )


def funnel(
    files: Sequence[SourceFile],
    corpus: Corpus,
    selection: Selection,
    encoded: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Files, documents and bytes after each step, and what the step dropped.

    `encoded` is what is said of the step that makes records fit; texts have none.
    """

    def after(step: str, kept: npt.NDArray[np.bool_], **more: Any) -> dict[str, Any]:
        num_bytes = int(corpus.num_bytes[kept].sum())
        return {"step": step, "documents": int(kept.sum()), "bytes": num_bytes, **more}

    bad_bytes = sum(item.num_bytes for item in corpus.set_aside)
    reasons = Counter(item.reason for item in corpus.set_aside)
    everything = np.ones(len(corpus), np.bool_)
    long_enough = ~selection.short
    unique = long_enough & ~selection.duplicate
    return [
        {"step": "found", "files": len(files), "bytes": sum(f.size_bytes for f in files)},
        {
            "step": "read",
            "documents": len(corpus) + len(corpus.set_aside),
            "bytes": int(corpus.raw_bytes.sum()) + bad_bytes,
        },
        after(
            "cleaned",
            everything,
            set_aside=dict(sorted(reasons.items())),
            set_aside_bytes=bad_bytes,
            repaired=corpus.num_repaired,
        ),
        after("long enough", long_enough, dropped=int(selection.short.sum())),
        after("unique", unique, dropped=int(selection.duplicate.sum())),
        *([] if encoded is None else [after("encoded", selection.kept, **encoded)]),
        after("train", selection.train),
        after("held_out", selection.held_out),
    ]
