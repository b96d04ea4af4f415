"""Preparing records: none is cut over two sequences; what does not fit is left out, and counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.data.encode_records import Vocabulary, encode_records, no_template
from raylm.data.encoded import EncodedRecords, LeftOut
from raylm.data.fit import NO_TARGET_LEFT, TOO_LONG
from raylm.data.funnel import check_usable, funnel
from raylm.data.labels import classes
from raylm.data.pack import Documents
from raylm.data.pack_records import Files, Records, Written, write_records
from raylm.data.passes import run_pass
from raylm.data.preparation import Preparation
from raylm.data.scan import SetAside
from raylm.data.select import Mask, without
from raylm.data.shards import SCHEMA_VERSION, Split
from raylm.data.tokenizer import load_tokenizer, role_id
from raylm.errors import DataError
from raylm.model.chat import read_template

_COUNTED = (TOO_LONG, NO_TARGET_LEFT)
"""Reasons that are no fault of a record: counted, where other records are set aside by name."""


class RecordPreparation(Preparation):
    """The steps of `chat`, `pairs`, `labels` and `preferences`."""

    encoded: EncodedRecords
    _encoded_documents: npt.NDArray[np.int64]
    """The document of each row of `encoded`."""
    _label_names: list[str]
    _label: npt.NDArray[np.int32]
    """Class of each document; 0 where the format has none."""
    _written: dict[Split, Written]

    def scan(self) -> None:
        """Read and clean everything once; decide what stays."""
        path = self.config.tokenizer.path
        if self.config.format == "chat" and path is not None:
            folder = self.base_dir / Path(path).expanduser()
            if folder.is_dir() and read_template(folder) is None:
                raise no_template()
        super().scan()

    def encode(self) -> None:
        """Turn the kept records into files of tokens, in source order; drop what does not fit."""
        kept = self._encoded_documents = np.flatnonzero(self.selection.kept)
        arguments = {"config": self.config, "vocabulary": self._vocabulary()}
        done_after = np.concatenate([[0], np.cumsum(self.corpus.num_bytes[kept])])
        num_done = 0

        def tell() -> None:
            done, total = int(done_after[num_done]), int(done_after[-1])
            self.pace.say(f"tokenising {len(kept):,} records", done, total)

        tell()
        tables = run_pass(self.kept_groups(), encode_records, arguments, self.config.num_cpus)
        with self._file("tokens").open("wb") as tokens, self._file("source").open("wb") as source:
            self.encoded = EncodedRecords(tokens, source, self.dtype)
            for table in self.pace.iterate(tables, tell):
                self.encoded.add(table)
                num_done = self.encoded.num_done
                self._refuse_too_long()
        assert num_done == len(kept), f"{num_done} of {len(kept)} records came back"
        refused = [self._set_aside(i) for i in self.encoded.left_out if i.reason not in _COUNTED]
        check_usable(self.corpus, refused, self.config)
        self.set_aside += refused
        left_out = np.zeros(len(self.corpus), np.bool_)
        left_out[kept[[item.place for item in self.encoded.left_out]]] = True
        self.selection = without(self.selection, left_out)
        self._number_labels()

    def pack(self) -> None:
        """Write both splits, the index and the report."""
        self.pace.say("packing")
        self._written = self.pace.run(self._write_splits, lambda: self.pace.say("packing"))
        self.figures = {split: written.figures for split, written in self._written.items()}
        for name in ("tokens", "source"):
            self._file(name).unlink()
        self.write_index(SCHEMA_VERSION, self.encoded.exact, self._more())
        reasons = Counter(item.reason for item in self.encoded.left_out)
        step = {
            "dropped": reasons.total(),
            "reasons": dict(sorted(reasons.items())),
            "truncated": self.encoded.num_truncated,
        }
        self.write_report(funnel(self.files, self.corpus, self.selection, step), self.set_aside)

    def bytes_per_token(self) -> float:
        """Of held-out text: what the tokenizer does for text that it was not trained on."""
        written = self._written["held_out"]
        return round(written.text_bytes / max(1, written.text_tokens), 4)

    def _vocabulary(self) -> Vocabulary:
        source, special = read_template(self.folder / "tokenizer") or (None, {})
        return Vocabulary(self.serialized, self.eos, source, tuple(sorted(special.items())))

    def _refuse_too_long(self) -> None:
        if self.config.too_long != "error":
            return
        found = next((item for item in self.encoded.left_out if item.reason == TOO_LONG), None)
        if found is not None:
            raise DataError(
                f"{self._set_aside(found).source}: {found.detail}",
                code="data-too-long",
                hint="set data.seq_len higher, or data.too_long=drop or truncate",
            )

    def _set_aside(self, item: LeftOut) -> SetAside:
        document = int(self._encoded_documents[item.place])
        num_bytes = int(self.corpus.raw_bytes[document])
        return SetAside(self.corpus.source(document), item.reason, item.detail, num_bytes, True)

    def _number_labels(self) -> None:
        self._label = np.zeros(len(self.corpus), np.int32)
        if self.config.format == "labels":
            kept = self.selection.kept
            found = classes(self.corpus.label_values, self.corpus.label[kept])
            self._label_names, self._label[kept] = found

    def _more(self) -> dict[str, Any]:
        """What index.json says of this format."""
        more: dict[str, Any] = {"format": self.config.format}
        if self.config.format == "labels":
            more["labels"] = self._label_names
        if self.config.format == "pairs":
            folder = self.folder / "tokenizer"
            pad = role_id(folder, load_tokenizer(self.serialized), "pad_token")
            more["source_len"] = self.config.source_len or self.config.seq_len
            # T5's habit; a tokenizer without padding starts with what ends.
            more["decoder_start_id"] = self.eos if pad is None else pad
        return more

    def _write_splits(self) -> dict[Split, Written]:
        columns, spans = self.encoded.columns(), self.encoded.spans()
        paired = self.config.format == "pairs"
        files = Files(
            tokens=np.memmap(self._file("tokens"), self.dtype, "r"),
            source=np.memmap(self._file("source" if paired else "tokens"), self.dtype, "r"),
            spans=spans,
            token_lengths=self.token_lengths,
            format=self.config.format,
            seq_len=self.config.seq_len,
            source_len=(self.config.source_len or self.config.seq_len) if paired else None,
            shard_samples=self.config.shard_samples,
            padding=self.eos,
        )
        masks: dict[Split, Mask] = {
            "train": self.selection.train,
            "held_out": self.selection.held_out,
        }
        return {
            split: self._write_split(split, mask, columns, files) for split, mask in masks.items()
        }

    def _write_split(
        self, split: Split, mask: Mask, columns: dict[str, npt.NDArray[np.int64]], files: Files
    ) -> Written:
        documents, ids, sources = self.split_documents(mask)
        place = np.searchsorted(self._encoded_documents, documents)
        here = {name: column[place] for name, column in columns.items()}
        return write_records(
            self.folder / split,
            Documents(
                ids=ids,
                sources=sources,
                num_bytes=self.corpus.num_bytes[documents],
                begin=here["begin"],
                num_tokens=here["num_tokens"] + here["num_source"],
            ),
            Records(**here, label=self._label[documents]),
            files,
        )

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.tmp"
