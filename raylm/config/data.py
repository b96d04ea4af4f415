"""The `data` section: from text to packed token shards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raylm.config.section import OUTSIDE_KEY, Section

Format = Literal["text", "chat", "pairs", "labels", "preferences"]
FIELDS: dict[Format, tuple[str, ...]] = {
    "text": (),
    "chat": ("messages",),
    "pairs": ("source", "target"),
    "labels": ("label",),
    "preferences": ("prompt", "chosen", "rejected"),
}
"""What `data.fields` may name anew; the text itself is named by `data.text_field`."""
_RECORDS_ALONE = ("format", "fields", "too_long", "source_len")


class TokenizerConfig(Section):
    """A tokenizer to train, or a folder that holds one."""

    path: Annotated[str | None, OUTSIDE_KEY] = None
    """Folder with tokenizer.json, taken as it is; None trains one on the corpus."""
    vocab_size: int = Field(8192, ge=259, le=2**20)
    """Tokens of the byte-level BPE to train: 256 bytes, 3 special tokens, and merges."""
    sample_bytes: int = Field(64 * 2**20, ge=1024)
    """At most this much training text is read to train the tokenizer."""
    mask_token: bool = False
    """Give the tokenizer to train what an encoder needs: a `<|mask|>` token, and end-of-text
    before and after each text that is encoded with special tokens."""

    @model_validator(mode="after")
    def _mask_fits(self) -> TokenizerConfig:
        if self.mask_token and self.path is not None:
            raise ValueError("mask_token is for a tokenizer to train; the one in path has its own")
        if self.mask_token and self.vocab_size < 260:
            raise ValueError(f"vocab_size={self.vocab_size} is too small for mask_token")
        return self

    def key(self) -> dict[str, Any]:
        """As every section's; without `mask_token` where it is off, as before there was one."""
        found = super().key()
        return found if self.mask_token else {k: v for k, v in found.items() if k != "mask_token"}


class DataConfig(Section):
    """From text to packed token shards."""

    paths: Annotated[tuple[str, ...], OUTSIDE_KEY] = ()
    """Files, folders (searched for `pattern`) and globs; `python:stdlib` is the source of
    this machine's own Python standard library, without its tests. Relative paths start at
    the config file. A file is a document; of JSONL (.jsonl, .ndjson) each record is one."""
    format: Format = "text"
    """What is read. `text`: documents, cut into full sequences. The others are JSONL records,
    never cut over two sequences: `chat` (messages), `pairs` (source, target), `labels` (text,
    label), `preferences` (prompt, chosen, rejected)."""
    pattern: str = "**/*"
    """Which files of a folder are taken. Hidden ones never are."""
    exclude: tuple[str, ...] = ()
    """Globs, relative to a folder in `paths`, of files and folders that are left out."""
    text_field: str = "text"
    """The field of a JSONL record that holds the document; of `labels` the text to classify."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Other names of a record's fields: `{messages: conversation}`."""
    too_long: Literal["drop", "truncate", "error"] = "drop"
    """What happens to a record that is longer than a sequence; truncation cuts its end."""
    min_bytes: int = Field(16, ge=1)
    """Documents shorter than this after cleaning are dropped. 1 unless the format is `text`."""
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
    source_len: int | None = Field(None, ge=8, le=2**20)
    """Of `pairs`: tokens of one packed sequence on the encoder's side; None takes seq_len."""
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

    @model_validator(mode="before")
    @classmethod
    def _records_may_be_short(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("format", "text") != "text":
            return {"min_bytes": 1, **values}
        return values

    @model_validator(mode="after")
    def _options_fit_the_format(self) -> DataConfig:
        known = FIELDS[self.format]
        for name in self.fields:
            if name == "text" and self.format in ("text", "labels"):
                raise ValueError("fields: the text's field is set with text_field")
            if name not in known:
                there = f"it has {', '.join(known)}" if known else "it has none to name"
                raise ValueError(f"fields: format={self.format} has no field {name!r}: {there}")
        used = [self.field(name) for name in known]
        used += [self.text_field] if self.format == "labels" else []
        if len(set(used)) < len(used):
            raise ValueError(f"fields: two of {', '.join(used)} are the same field")
        if self.format not in ("text", "labels") and self.text_field != "text":
            raise ValueError(f"text_field: format={self.format} has no such field, see fields")
        if self.format == "text" and self.too_long != "drop":
            raise ValueError("too_long: format=text cuts documents, none is too long")
        if self.format != "pairs" and self.source_len is not None:
            raise ValueError(f"source_len: format={self.format} has no encoder's side")
        return self

    def field(self, name: str) -> str:
        """The field of a record that holds `name`."""
        return self.fields.get(name, name)

    def key(self) -> dict[str, Any]:
        """As every section's; that of `text` is without what only records have, as before."""
        found = super().key()
        if self.format != "text":
            return found
        return {name: value for name, value in found.items() if name not in _RECORDS_ALONE}
