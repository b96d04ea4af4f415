"""Preparing text: documents end to end, each ended by end-of-text, cut into full sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.data.encode import encode_parts, tokens_of
from raylm.data.funnel import funnel
from raylm.data.pack import Documents, SplitFigures, write_split
from raylm.data.passes import run_pass
from raylm.data.preparation import Preparation
from raylm.data.select import Mask, require_sequences
from raylm.data.shards import TEXT_SCHEMA_VERSION, Split


class TextPreparation(Preparation):
    """The steps of the format `text`."""

    num_tokens: npt.NDArray[np.int64]
    """Of each kept document, end-of-text included."""
    _exact = True

    def encode(self) -> None:
        """Turn the kept documents into one file of tokens, in source order."""
        kept = np.flatnonzero(self.selection.kept)
        arguments = {
            "config": self.config,
            "tokenizer": self.serialized,
            "eos": self.eos,
            "dtype": self.dtype.str,
        }
        done_after = np.cumsum(self.corpus.num_bytes[kept])
        counts = np.zeros(len(kept), np.int64)
        num_done = 0

        def tell() -> None:
            done = int(done_after[num_done - 1]) if num_done else 0
            self.pace.say(f"tokenising {len(kept):,} documents", done, int(done_after[-1]))

        tell()
        tables = run_pass(self.kept_groups(), encode_parts, arguments, self.config.num_cpus)
        with self._token_file.open("wb") as file:
            for table in self.pace.iterate(tables, tell):
                tokens, lengths = tokens_of(table)
                file.write(tokens.tobytes())
                counts[num_done : num_done + len(lengths)] = lengths
                num_done += len(lengths)
                self._exact &= all(table["exact"].to_pylist())
        assert num_done == len(kept), f"{num_done} of {len(kept)} documents came back"
        self.num_tokens = counts

    def pack(self) -> None:
        """Write both splits, the index and the report."""
        kept = self.selection.kept
        require_sequences(self.num_tokens, self.corpus.hashes[kept], self.selection.held_out[kept],
                          seq_len=self.config.seq_len, seed=self.seed)  # fmt: skip
        self.pace.say("packing")
        self.figures = self.pace.run(self._write_splits, lambda: self.pace.say("packing"))
        self._token_file.unlink()
        self.write_index(TEXT_SCHEMA_VERSION, self._exact, {})
        self.write_report(funnel(self.files, self.corpus, self.selection), self.set_aside)

    def bytes_per_token(self) -> float:
        """Of held-out text: what the tokenizer does for text that it was not trained on."""
        figures = self.figures["held_out"]
        return round(figures.num_bytes / (figures.num_tokens - figures.num_documents), 4)

    def _write_splits(self) -> dict[Split, SplitFigures]:
        tokens = np.memmap(self._token_file, self.dtype, "r")
        return {
            "train": self._write_split("train", self.selection.train, tokens),
            "held_out": self._write_split("held_out", self.selection.held_out, tokens),
        }

    def _write_split(self, split: Split, mask: Mask, tokens: Any) -> SplitFigures:
        documents, ids, sources = self.split_documents(mask)
        # Place among the kept documents, which are what the token file holds.
        place = np.cumsum(self.selection.kept)[documents] - 1
        begin = np.cumsum(self.num_tokens) - self.num_tokens
        return write_split(
            self.folder / split,
            Documents(
                ids=ids,
                sources=sources,
                num_bytes=self.corpus.num_bytes[documents],
                begin=begin[place],
                num_tokens=self.num_tokens[place],
            ),
            tokens,
            self.token_lengths,
            seq_len=self.config.seq_len,
            shard_samples=self.config.shard_samples,
            padding=self.eos,
        )

    @property
    def _token_file(self) -> Path:
        return self.folder / "tokens.tmp"
