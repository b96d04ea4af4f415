"""The second pass over records: each becomes the tokens of its segments, and what is learned.

    chat         the conversation as the chat template writes it; targets are the answers
    pairs        target and end-of-text, all of it learned; the source and end-of-text beside
    labels       the text with the special tokens of the tokenizer's post-processor, else the
                 text and end-of-text
    preferences  prompt and chosen answer, then prompt and rejected answer; targets are the
                 answers, each with its end

A prompt that is a text is tokenised together with its answer, and end-of-text follows; one of
messages is a conversation. A token that reaches from a prompt into an answer is no target: at
inference it does not exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from raylm.config.data import DataConfig
from raylm.data.conversation import MAX_CHARS, Conversation, Renderer, special_tokens
from raylm.data.encode import kept_contents
from raylm.data.fit import Draft, Encoded, Segment, Tokens, fit
from raylm.data.parts import Part
from raylm.data.records import ASSISTANT, BadRecord
from raylm.data.tokenizer import load_tokenizer, token_lengths
from raylm.errors import DataError
from raylm.model.chat import ChatTemplate

_BATCH_BYTES = 2**20
SCHEMA = pa.schema(
    [
        ("tokens", pa.large_list(pa.uint32())),
        ("source", pa.large_list(pa.uint32())),
        ("first", pa.int32()),
        ("spans", pa.large_list(pa.int32())),
        ("exact", pa.bool_()),
        ("truncated", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What encoding needs of a tokenizer folder; it travels with each task."""

    serialized: str
    eos: int
    template: str | None
    """Source of the chat template."""
    template_tokens: tuple[tuple[str, str], ...] = ()
    """Special tokens by the names that the template has for them."""


def encode_records(
    group: pa.Table, *, config: DataConfig, vocabulary: Vocabulary
) -> Iterator[pa.Table]:
    """Tables of SCHEMA, one row for each kept record of some parts, in order.

    The group's columns `kept` and `hashes` are those of `kept_rows`.

    Raises:
        DataError: a record is not what the first pass saw, or needs a chat template where the
            tokenizer has none.
    """
    # One task, one thread: parallel work is Ray's.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = RecordEncoder(vocabulary, config)
    for row in group.to_pylist():
        kept, hashes = row.pop("kept"), row.pop("hashes")
        records: list[Any] = []
        num_bytes = 0
        for content in kept_contents(Part(**row), kept, hashes, config):
            records.append(json.loads(content))
            num_bytes += len(content)
            if num_bytes > _BATCH_BYTES:
                yield _table(encoder.encode(records))
                records, num_bytes = [], 0
        if records:
            yield _table(encoder.encode(records))


def _table(records: Sequence[Encoded]) -> pa.Table:
    """One row a record."""
    columns = {
        "tokens": _lists([record.tokens for record in records]),
        "source": _lists([record.source for record in records]),
        "first": [record.first for record in records],
        "spans": [[number for span in record.spans for number in span] for record in records],
        "exact": [record.exact for record in records],
        "truncated": [record.truncated for record in records],
        "reason": [record.reason for record in records],
        "detail": [record.detail for record in records],
    }
    return pa.table(columns, schema=SCHEMA)


def _lists(arrays: Sequence[Tokens]) -> pa.LargeListArray:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


class RecordEncoder:
    """Encodes records of one format."""

    def __init__(self, vocabulary: Vocabulary, config: DataConfig) -> None:
        self._tools = _tools(vocabulary)
        self._eos = np.array([vocabulary.eos], np.uint32)
        self._config = config
        drafts: dict[str, Callable[[Sequence[Any]], list[Draft | Encoded]]] = {
            "chat": self._chats,
            "pairs": self._pairs,
            "labels": self._labels,
            "preferences": self._preferences,
        }
        self._drafts = drafts[config.format]

    def encode(self, records: Sequence[Any]) -> list[Encoded]:
        """Records with the content that `take` wrote, each one that fits or has a reason."""
        config = self._config
        limits = {"seq_len": config.seq_len, "source_len": config.source_len or config.seq_len}
        truncate = config.too_long == "truncate"
        return [
            fit(draft, truncate=truncate, **limits) if isinstance(draft, Draft) else draft
            for draft in self._drafts(records)
        ]

    def _chats(self, records: Sequence[Any]) -> list[Draft | Encoded]:
        rendered = [self._render(record["messages"]) for record in records]
        return [
            found if isinstance(found, Encoded) else Draft((found[0],), None, found[1])
            for found in self._conversations(rendered)
        ]

    def _preferences(self, records: Sequence[Any]) -> list[Draft | Encoded]:
        rendered = [
            self._answered(record["prompt"], record[name])
            for record in records
            for name in ("chosen", "rejected")
        ]
        found = self._conversations(rendered)
        drafts: list[Draft | Encoded] = []
        for chosen, rejected in zip(found[::2], found[1::2], strict=True):
            if isinstance(chosen, Encoded):
                drafts.append(chosen)
            elif isinstance(rejected, Encoded):
                drafts.append(rejected)
            else:
                segments = (chosen[0], rejected[0])
                drafts.append(Draft(segments, None, chosen[1] and rejected[1]))
        return drafts

    def _pairs(self, records: Sequence[Any]) -> list[Draft | Encoded]:
        targets = self._ended([record["target"] for record in records])
        sources = self._ended([record["source"] for record in records])
        return [
            Draft(
                (Segment(target),),
                Segment(source, tail=1),
                self._exact(target, record["target"]) and self._exact(source, record["source"]),
            )
            for record, target, source in zip(records, targets, sources, strict=True)
        ]

    def _labels(self, records: Sequence[Any]) -> list[Draft | Encoded]:
        texts, tail = [record["text"] for record in records], self._tools.tail
        if self._tools.adds_special:
            encodings = self._tools.plain.encode_batch_fast(texts, add_special_tokens=True)
            encoded = [_ids(encoding) for encoding in encodings]
        else:
            encoded, tail = self._ended(texts), 1
        return [
            Draft((Segment(tokens, tail=tail),), None, self._exact(tokens, text))
            for tokens, text in zip(encoded, texts, strict=True)
        ]

    def _render(self, messages: list[dict[str, str]]) -> Conversation | Encoded:
        if self._tools.renderer is None:
            raise no_template()
        try:
            return self._tools.renderer.render(messages)
        except BadRecord as bad:
            return Encoded(reason=bad.reason, detail=bad.detail)

    def _answered(self, prompt: str | list[dict[str, str]], answer: str) -> Conversation | Encoded:
        if isinstance(prompt, str):
            whole = prompt + answer
            return Conversation(whole, [(len(prompt), len(whole))], rendered=False)
        found = self._render([*prompt, {"role": ASSISTANT, "content": answer}])
        if isinstance(found, Encoded):
            return found
        return Conversation(found.text, found.answers[-1:])

    def _conversations(
        self, items: Sequence[Conversation | Encoded]
    ) -> list[tuple[Segment, bool] | Encoded]:
        """Each conversation as a segment, and whether its bytes are exact."""
        found: list[tuple[Segment, bool] | Encoded | None] = [
            item if isinstance(item, Encoded) else None for item in items
        ]
        for rendered, tokenizer in ((True, self._tools.marked), (False, self._tools.plain)):
            places, conversations = [], []
            for place, item in enumerate(items):
                if isinstance(item, Conversation) and item.rendered is rendered:
                    places.append(place)
                    conversations.append(item)
            texts = [conversation.text for conversation in conversations]
            encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
            for place, encoding, item in zip(places, encodings, conversations, strict=True):
                found[place] = self._segment(encoding, item)
        return [item for item in found if item is not None]

    def _segment(self, encoding: Encoding, item: Conversation) -> tuple[Segment, bool]:
        tokens = _ids(encoding)
        begins = np.array(encoding.offsets, np.int64).reshape(-1, 2)[:, 0]
        first, end = np.searchsorted(begins, np.array(item.answers, np.int64)).T
        text = item.text
        if item.rendered and self._tools.renderer is not None:
            text = self._tools.renderer.special.sub("", text)
        if not item.rendered:
            tokens = np.concatenate([tokens, self._eos])
            end = end + 1
        start = np.maximum(first, 1) - 1
        spans = tuple(zip(start.tolist(), (end - 1 - start).tolist(), strict=True))
        segment = Segment(tokens, tuple((s, n) for s, n in spans if n > 0))
        return segment, self._exact(tokens, text)

    def _ended(self, texts: Sequence[str]) -> list[Tokens]:
        encodings = self._tools.plain.encode_batch_fast(texts, add_special_tokens=False)
        return [np.concatenate([_ids(encoding), self._eos]) for encoding in encodings]

    def _exact(self, tokens: Tokens, text: str) -> bool:
        return int(self._tools.lengths[tokens].sum()) == len(text.encode())


@dataclass(frozen=True, slots=True)
class _Tools:
    plain: Tokenizer
    """Special tokens in the text are text."""
    marked: Tokenizer
    """Special tokens in the text are control tokens."""
    lengths: npt.NDArray[np.int32]
    renderer: Renderer | None
    adds_special: bool
    tail: int
    """Special tokens that the post-processor puts behind a text."""


@lru_cache(maxsize=1)
def _tools(vocabulary: Vocabulary) -> _Tools:
    plain, marked = (load_tokenizer(vocabulary.serialized) for _ in range(2))
    marked.encode_special_tokens = False
    renderer = None
    if vocabulary.template is not None:
        # A template that writes today's date would make other data tomorrow.
        template = ChatTemplate(
            vocabulary.template, dict(vocabulary.template_tokens), max_chars=MAX_CHARS, dated=False
        )
        renderer = Renderer(template, special_tokens(plain))
    is_special = plain.encode("a", add_special_tokens=True).special_tokens_mask
    return _Tools(
        plain=plain,
        marked=marked,
        lengths=token_lengths(plain),
        renderer=renderer,
        adds_special=plain.num_special_tokens_to_add(False) > 0,
        tail=next((n for n, mark in enumerate(reversed(is_special)) if not mark), 0),
    )


def _ids(encoding: Encoding) -> Tokens:
    return np.array(encoding.ids, np.uint32)


def no_template() -> DataError:
    """What is said where messages meet a tokenizer without a chat template."""
    return DataError(
        "data.tokenizer.path: the tokenizer has no chat template, which messages need",
        code="data-no-chat-template",
        hint="put a chat_template.jinja into its folder; a tokenizer trained here has ChatML's",
    )
