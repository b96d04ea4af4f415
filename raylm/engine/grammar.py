"""Grammars that answers follow: compiled once, then a mask over the vocabulary for every token.

llguidance (arXiv:2501.10868 measures it) does the parsing: Earley over a lexer of derivatives,
in Rust, without the GIL. It cannot be interrupted, so its fuel is bounded, and compiling happens
in a thread of its own: the thread that steps the engine only asks for masks, which the limits
keep to a few milliseconds for the worst of grammars.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from raylm.engine.protocol import Capabilities, Grammar
from raylm.engine.schema import read_schema
from raylm.errors import RequestError

COMPILE_TIMEOUT_S = 5.0
MAX_SOURCE_BYTES = 128 * 1024
_MAX_KEPT = 64
_MAX_KEPT_BYTES = 2**20  # of source; compiled, a grammar is up to a hundred times as large
_STEP_LIMITS = {"step_lexer_fuel": 50_000, "step_max_items": 20_000, "max_lexer_states": 20_000}
# Without it, a forced text is spelled out at once, however long it is: seconds for a{1000000}.
_OPTIONS = '%llguidance {"no_forcing": true}'
# Unbounded, a small model that begins with blanks may never end.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
_IN_SCHEMA = re.compile(r"^at \d+\(\d+\): failed to compile JSON schema: ")


def has_grammars() -> bool:
    """Whether the package that follows grammars is installed."""
    return find_spec("llguidance") is not None


class Matcher:
    """One answer's place in its grammar. `allowed` [vocab] is what may come next."""

    def __init__(self, state: Any, vocab_size: int, param: str) -> None:
        self._state = state
        self._vocab_size = vocab_size
        self._param = param
        self.allowed = self._mask()

    @property
    def is_complete(self) -> bool:
        """The grammar is fulfilled and nothing but the end can follow."""
        return bool(self._state.is_stopped())

    def advance(self, token_id: int) -> None:
        """Take a token.

        Raises:
            RequestError: the grammar does not allow it, or has become too complex to follow.
        """
        self._state.consume_token(token_id)
        if self._state.is_error() or not self.is_complete:
            self.allowed = self._mask()

    def _mask(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._state.compute_bitmask(), np.uint8)
        if self._state.is_error():
            raise _refused(self._state.get_error(), self._param)
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)


class Grammars:
    """The grammars of one model's tokenizer; the last few are kept compiled."""

    def __init__(self, tokenizer: Tokenizer, capabilities: Capabilities) -> None:
        self._vocab_size = capabilities.vocab_size
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="raylm-grammar")
        # It holds the GIL for a moment, so it is made before there are answers to hold up.
        self._vocabulary = self._worker.submit(_vocabulary, tokenizer, capabilities)

    async def matcher(self, grammar: Grammar, emitted_ids: Sequence[int]) -> Matcher:
        """A matcher that has taken the emitted tokens.

        Raises:
            RequestError: 400 for a grammar that is wrong, not supported or too complex, or that
                does not allow the emitted tokens; 503 where others are being compiled.
        """
        size = len(grammar.source.encode())
        if size > MAX_SOURCE_BYTES:
            raise _refused(f"{size} bytes are more than {MAX_SOURCE_BYTES}", grammar.param)
        work: Future[Matcher] = self._worker.submit(self._start, grammar, emitted_ids)
        waiting = asyncio.wrap_future(work)
        try:
            await asyncio.wait({waiting}, timeout=COMPILE_TIMEOUT_S)
            if waiting.done():
                return waiting.result()
        finally:
            has_begun = not work.cancel()
            waiting.cancel()
        if not has_begun:
            raise RequestError(
                "other grammars are being compiled; try again later",
                code="overloaded",
                status=503,
                retry_after_s=COMPILE_TIMEOUT_S,
            )
        raise _refused(f"it is not compiled within {COMPILE_TIMEOUT_S:g} s", grammar.param)

    def close(self) -> None:
        """Take no more work."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _start(self, grammar: Grammar, emitted_ids: Sequence[int]) -> Matcher:
        state = self._compiled(grammar).deep_copy()
        num_taken = state.try_consume_tokens(list(emitted_ids))
        if num_taken < len(emitted_ids):
            raise _refused(
                state.get_error() or f"it does not allow emitted token {num_taken}", grammar.param
            )
        return Matcher(state, self._vocab_size, grammar.param)

    def _compiled(self, grammar: Grammar) -> Any:
        key = (grammar.kind, grammar.source)
        found = self._kept.pop(key, None)
        self._kept[key] = self._compile(grammar) if found is None else found
        while len(self._kept) > _MAX_KEPT or self._num_kept_bytes() > _MAX_KEPT_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _num_kept_bytes(self) -> int:
        return sum(len(source) for _, source in self._kept)

    def _compile(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        try:
            source, vocabulary = lark_source(grammar), self._vocabulary.result()
        except ValueError as error:
            raise _refused(str(error), grammar.param) from None
        limits = LLParserLimits(verbose_errors=False, **_STEP_LIMITS)
        state = LLMatcher(vocabulary, source, log_level=0, limits=limits)
        if state.is_error():
            raise _refused(state.get_error(), grammar.param)
        return state


def _vocabulary(tokenizer: Tokenizer, capabilities: Capabilities) -> Any:
    """The tokens' bytes as a trie.

    Raises:
        ValueError: the tokenizer is of a kind whose tokens are no bytes.
    """
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(
            tokenizer.to_str(),
            n_vocab=capabilities.vocab_size,
            eos_token=list(capabilities.eos_token_ids) or None,
        )
    except ValueError as error:
        raise ValueError(f"the model's tokenizer cannot spell it: {error}") from None


def lark_source(grammar: Grammar) -> str:
    """Any kind of grammar in llguidance's Lark, with what is the same for all of them.

    Raises:
        ValueError: a JSON schema is not one, or has a keyword that cannot be enforced.
    """
    from llguidance import regex_to_lark

    if grammar.kind == "lark":
        return f"{grammar.source}\n{_OPTIONS}\n"  # the last option counts
    if grammar.kind == "regex":
        # Digits are 0 to 9, not those of every script.
        regex = regex_to_lark(grammar.source, use_ascii="d")
        return f"start: /{regex}/\n{_OPTIONS}\n"
    schema = {"type": "object"} if grammar.kind == "json_object" else read_schema(grammar.source)
    return f"start: %json {json_of(schema)}\n{_OPTIONS}\n"


def json_of(schema: dict[str, Any]) -> str:
    """A schema as it stands behind `%json`: nothing overlooked, blanks bounded."""
    options = {"lenient": False, "whitespace_pattern": WHITESPACE}
    return json.dumps(schema | {"x-guidance": options})


def _refused(problem: str, param: str) -> RequestError:
    lines = problem.splitlines()
    # Of a regular expression's error only the last line says what is wrong.
    line = next((line for line in lines if line.startswith("error:")), lines[0])
    if line.startswith("NoExtension"):
        line = "no text fulfils it"
    return RequestError(
        f"the grammar cannot be followed: {_IN_SCHEMA.sub('', line)}",
        code="invalid_grammar",
        param=param,
    )
