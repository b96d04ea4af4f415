"""The `data` section: from text to packed token shards."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from raylm.config.section import OUTSIDE_KEY, Section


class TokenizerConfig(Section):
    """A tokenizer to train, or a folder that holds one."""

    path: Annotated[str | None, OUTSIDE_KEY] = None
    """Folder with tokenizer.json, taken as it is; None trains one on the corpus."""
    vocab_size: int = Field(8192, ge=259, le=2**20)
    """Tokens of the byte-level BPE to train: 256 bytes, 3 special tokens, and merges."""
    sample_bytes: int = Field(64 * 2**20, ge=1024)
    """At most this much training text is read to train the tokenizer."""


class DataConfig(Section):
    """From text to packed token shards."""

    paths: Annotated[tuple[str, ...], OUTSIDE_KEY] = ()
    """Files, folders (searched for `pattern`) and globs; `python:stdlib` is the source of
    this machine's own Python standard library, without its tests. Relative paths start at
    the config file. A file is a document; of JSONL (.jsonl, .ndjson) each record is one."""
    pattern: str = "**/*"
    """Which files of a folder are taken. Hidden ones never are."""
    exclude: tuple[str, ...] = ()
    """Globs, relative to a folder in `paths`, of files and folders that are left out."""
    text_field: str = "text"
    """The field of a JSONL record that holds the document."""
    min_bytes: int = Field(16, ge=1)
    """Documents shorter than this after cleaning are dropped."""
    normalize: bool = True
    """NFC, uniform line ends, no control characters."""
    fix_mojibake: bool = False
    """Undo text that was decoded with the wrong encoding (ftfy): `cafÃ©` becomes `café`."""
    dedup: bool = True
    """Drop all but the first of documents with equal text."""
    held_out: float = Field(0.02, gt=0, lt=1)
    """Share of the documents, chosen by the hash of their text, that is never trained on."""
    seq_len: int = Field(512, ge=8, le=2**20)
    """Tokens of one packed sequence."""
    max_bad: float = Field(0.1, ge=0, le=1)
    """Share of unreadable records that may be set aside before the stage fails."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    num_cpus: Annotated[float, OUTSIDE_KEY] = Field(1.0, gt=0)
    """CPUs of one task."""
    shard_samples: int = Field(8192, ge=1)
    """Packed sequences in one shard file."""

    @field_validator("paths", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value
