"""The gateway's tokenizer: prompts to token ids, and token ids to text for logprobs and echo.

Answers arrive as text from the engine; the gateway keeps token ids beside it all the same, so
that an answer can be continued elsewhere from ids alone.
"""

from __future__ import annotations

import asyncio
import re
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from raylm.errors import ModelError, RequestError

INLINE_BYTES = 8 * 1024
"""Shorter texts are tokenised at once (about a millisecond); longer ones in a thread."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class PromptTokenizer:
    """A model's `tokenizer.json`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def from_folder(cls, folder: Path) -> PromptTokenizer:
        """Read a model folder's tokenizer.

        Raises:
            ModelError: there is none, or it cannot be read.
        """
        try:
            return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(
                f"{folder}/tokenizer.json cannot be read: {error}", code="tokenizer-broken"
            ) from error

    @cached_property
    def max_token_bytes(self) -> int:
        """The most bytes of text that one token stands for."""
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        return max(len(token.encode("utf-8")) for token in vocab)

    async def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        limit_tokens: int | None,
        param: str,
        truncate: bool = False,
        end_id: int | None = None,
    ) -> tuple[int, ...]:
        """Token ids of a text.

        `truncate` cuts it to `limit_tokens`, special tokens included. `end_id` goes behind a text
        to which the tokenizer adds no special tokens of its own.

        Raises:
            RequestError: the text is so long that it cannot fit `limit_tokens`; found from its
                bytes, before any work is done on it.
        """
        size = len(text.encode("utf-8"))
        least = -(-size // self.max_token_bytes)
        if limit_tokens is not None and least > limit_tokens and not truncate:
            raise RequestError(
                f"this model's maximum context length is {limit_tokens} tokens, and the prompt "
                f"of {size} bytes has at least {least}",
                code="context-length-exceeded",
                param=param,
            )
        most = limit_tokens if truncate else None
        if size <= INLINE_BYTES:
            return self._encode(text, add_special_tokens, most, end_id)
        return await asyncio.to_thread(self._encode, text, add_special_tokens, most, end_id)

    def _encode(
        self,
        text: str,
        add_special_tokens: bool,
        most: int | None = None,
        end_id: int | None = None,
    ) -> tuple[int, ...]:
        num_special = self._tokenizer.num_special_tokens_to_add(False)
        end = (end_id,) if add_special_tokens and not num_special and end_id is not None else ()
        if most is None:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
            return (*ids, *end)
        # Special tokens stay where they belong: at the end of the shorter text.
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        kept = most - (num_special if add_special_tokens else 0) - len(end)
        encoding.truncate(max(0, kept))
        if add_special_tokens:
            encoding = self._tokenizer.post_process(encoding)
        return (*encoding.ids, *end)

    def added_id(self, text: str) -> int | None:
        """The token that stands for a tag as a whole, if the tokenizer was given one."""
        token_id: int | None = self._tokenizer.token_to_id(text)
        return token_id if token_id in self._added else None

    def decode(self, ids: tuple[int, ...], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, by default without the special ones."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_names(self, ids: tuple[int, ...]) -> list[str]:
        """The tokens as the vocabulary writes them.

        Raises:
            RequestError: one is not in it.
        """
        names = []
        for token_id in ids:
            name = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
            if name is None:
                raise RequestError(
                    f"token {token_id} is not in the vocabulary of the model's tokenizer",
                    code="invalid-token-id",
                    param="tokens",
                )
            names.append(str(name))
        return names

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself; U+FFFD where it is part of a character."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token by itself."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added:
            return str(token).encode("utf-8")
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        if self._is_byte_level:
            return bytes(_BYTE_OF[char] for char in token if char in _BYTE_OF)
        return str(token).replace("▁", " ").encode("utf-8")

    def is_special(self, token_id: int) -> bool:
        """Whether a token stands for no text."""
        return token_id in self._special

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in repr(self._tokenizer.decoder)


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
