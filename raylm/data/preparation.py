"""Preparation: one run of the data stage, step by step, in a folder that becomes the artifact.

What texts and records have in common; prepare_text.py and prepare_records.py have the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raylm.arrays import save_array
from raylm.config.data import DataConfig
from raylm.data.encode import KEPT_SCHEMA, kept_rows, token_dtype
from raylm.data.funnel import check_readable, set_aside_lines
from raylm.data.hashing import HASH_BYTES, HashArray, document_id
from raylm.data.pace import Pacer
from raylm.data.pack import SplitFigures, shuffled
from raylm.data.parts import PART_SCHEMA, Part, cut, group
from raylm.data.passes import num_slots, run_pass, wait_for_cpus, warm_up
from raylm.data.sample import Sampling, choose
from raylm.data.scan import Corpus, SetAside, gather, scan_parts
from raylm.data.select import Mask, Selection, select
from raylm.data.shards import INDEX, SPLITS, TOKEN_BYTES, Split
from raylm.data.sources import SourceFile
from raylm.data.tokenizer import (
    copy_tokenizer,
    end_of_text_id,
    load_tokenizer,
    save_tokenizer,
    token_lengths,
    train_tokenizer,
)
from raylm.stage import Context

_TASKS_PER_SLOT = 8
_TASK_BYTES = (256 * 2**10, 16 * 2**20)
"""Least and most text for one task."""


class Preparation:
    """The state between the steps: each method is one, called in the order written here."""

    corpus: Corpus
    selection: Selection
    set_aside: list[SetAside]
    """What could not be used, in source order for each pass."""
    figures: dict[Split, SplitFigures]

    def __init__(
        self, config: DataConfig, context: Context, files: Sequence[SourceFile], folder: Path
    ) -> None:
        self.config, self.seed, self.files, self.folder = config, context.seed, files, folder
        self.pace = Pacer(context.report)
        self.base_dir = context.base_dir
        self._parts = cut(files)
        self._corpus_bytes = sum(part.num_bytes for part in self._parts)
        self._sample_bytes = 0

    def scan(self) -> None:
        """Read and clean everything once; decide what stays."""
        config = self.config
        wanted = config.tokenizer.sample_bytes if config.tokenizer.path is None else 0
        sampling = Sampling.of(self._corpus_bytes, wanted)
        arguments = {"config": config, "seed": self.seed, "sampling": sampling}
        done_after = np.cumsum([part.num_bytes for part in self._parts])
        done = 0

        def tell() -> None:
            text = f"reading {len(self.files):,} files" if done else "starting Ray's workers"
            self.pace.say(text, done, self._corpus_bytes)

        def counted(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
            nonlocal done
            for table in tables:
                if len(table):
                    done = int(done_after[table["part"][-1].as_py()])
                    yield table

        tell()
        self.pace.run(lambda: wait_for_cpus(config.num_cpus), tell)
        groups = self._groups({part.number: {} for part in self._parts}, PART_SCHEMA)
        warm_up(len(groups), config.num_cpus)
        tables = run_pass(groups, scan_parts, arguments, config.num_cpus)
        self.corpus = gather(self._parts, counted(self.pace.iterate(tables, tell)))
        check_readable(self.corpus, config)
        self.set_aside = list(self.corpus.set_aside)
        self.selection = select(
            self.corpus.hashes,
            self.corpus.num_bytes,
            min_bytes=config.min_bytes,
            dedup=config.dedup,
            held_out=config.held_out,
            seed=self.seed,
        )

    def make_tokenizer(self) -> None:
        """Train a tokenizer on the training split alone, or copy the one that is given."""
        config, folder = self.config.tokenizer, self.folder / "tokenizer"
        if config.path is not None:
            copy_tokenizer(self.base_dir / Path(config.path).expanduser(), folder)
        else:
            texts = choose(self.corpus.excerpts, self.selection.train, config.sample_bytes)
            self.corpus.excerpts.clear()
            self._sample_bytes = sum(len(text.encode()) for text in texts)
            text = f"{config.vocab_size:,} tokens on {self._sample_bytes / 1e6:.1f} MB"

            def tell() -> None:
                self.pace.say(f"training a tokenizer of {text}")

            tell()
            trained = self.pace.run(
                lambda: train_tokenizer(
                    texts,
                    config.vocab_size,
                    mask=config.mask_token,
                    enclosed=config.mask_token or self.config.format == "labels",
                ),
                tell,
            )
            save_tokenizer(trained, folder)
        self.serialized = (folder / "tokenizer.json").read_text(encoding="utf-8")
        tokenizer = load_tokenizer(self.serialized)
        self.eos = end_of_text_id(folder, tokenizer)
        self.token_lengths = token_lengths(tokenizer)
        self.dtype = token_dtype(len(self.token_lengths))

    def encode(self) -> None:
        """Turn the kept documents into files of tokens, in source order."""
        raise NotImplementedError

    def pack(self) -> None:
        """Write both splits, the index and the report."""
        raise NotImplementedError

    def bytes_per_token(self) -> float:
        """Of held-out text: what the tokenizer does for text that it was not trained on."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Any]:
        """The counts that the manifest shows."""
        unique = self.selection.kept.sum()
        found: dict[str, Any] = {
            "num_files": len(self.files),
            "num_documents": int(unique),
            "num_set_aside": len(self.set_aside),
            "num_short": int(self.selection.short.sum()),
            "num_duplicates": int(self.selection.duplicate.sum()),
            "vocab_size": len(self.token_lengths),
            "bytes_per_token": self.bytes_per_token(),
        }
        for split in SPLITS:
            figures = self.figures[split].to_json()
            names = ("num_documents", "num_bytes", "num_tokens", "num_samples")
            found |= {f"{split}_{name}": figures[name] for name in names}
        return found

    def split_documents(self, mask: Mask) -> tuple[npt.NDArray[np.int64], HashArray, list[str]]:
        """Documents of a split in packing order, with their ids and sources."""
        corpus, documents = self.corpus, np.flatnonzero(mask)
        sources = [corpus.source(document) for document in documents.tolist()]
        ids = np.array(
            [document_id(*pair) for pair in zip(sources, corpus.hashes[documents], strict=True)],
            dtype=f"S{HASH_BYTES}",
        )
        order = shuffled(ids, self.seed)
        return documents[order], ids[order], [sources[place] for place in order.tolist()]

    def kept_groups(self) -> list[pa.Table]:
        """One table a task, of the parts that hold kept documents."""
        kept = kept_rows(self.corpus, self.selection.kept)
        rows = {p: {"kept": numbers, "hashes": hashes} for p, (numbers, hashes) in kept.items()}
        return self._groups(rows, KEPT_SCHEMA)

    def write_index(self, version: int, exact: bool, more: dict[str, Any]) -> None:
        """Write index.json and token_bytes.npy; `more` is what the format adds."""
        save_array(self.folder / TOKEN_BYTES, self.token_lengths)
        index = {
            "schema_version": version,
            "seq_len": self.config.seq_len,
            "vocab_size": len(self.token_lengths),
            "dtype": self.dtype.str,
            "shard_samples": self.config.shard_samples,
            "eos_token_id": self.eos,
            "exact_bytes": exact,
            **more,
            "splits": {split: self.figures[split].to_json() for split in SPLITS},
        }
        self._write(INDEX, json.dumps(index, indent=2) + "\n")

    def write_report(self, steps: list[dict[str, Any]], set_aside: Sequence[SetAside]) -> None:
        """Write report.json and set_aside.jsonl."""
        report = {
            "funnel": steps,
            "tokenizer": {
                "vocab_size": len(self.token_lengths),
                "trained_on_bytes": self._sample_bytes,
                "bytes_per_token": self.bytes_per_token(),
            },
        }
        self._write("report.json", json.dumps(report, indent=2) + "\n")
        self._write("set_aside.jsonl", set_aside_lines(set_aside))

    def _groups(self, rows: dict[int, dict[str, Any]], schema: pa.Schema) -> list[pa.Table]:
        """Parts (and what `rows` adds to each) as one table a task."""
        parts: list[Part] = [self._parts[number] for number in sorted(rows)]
        per_task = self._corpus_bytes // (_TASKS_PER_SLOT * num_slots(self.config.num_cpus))
        target = min(max(per_task, _TASK_BYTES[0]), _TASK_BYTES[1])
        return [
            pa.Table.from_pylist([p.to_row() | rows[p.number] for p in some], schema=schema)
            for some in group(parts, target)
        ]

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")
