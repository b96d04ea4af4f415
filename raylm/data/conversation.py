"""A conversation as the model's chat template writes it, and where in it the model speaks.

Serving renders the messages so far with the mark of the next answer, and the model goes on
from there until the token that ends its turn. So that is what is learned: from where that
prompt ends, to the special token that ends the turn (or to the answer's end, in a template
that has none).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from raylm.data.records import ASSISTANT, BadRecord
from raylm.errors import RequestError
from raylm.model.chat import ChatTemplate

MAX_CHARS = 64 * 2**20
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Rendered text, and the [start, end) characters of each answer in it."""

    text: str
    answers: list[tuple[int, int]]
    rendered: bool = True
    """By a template, which wrote special tokens into it."""


class Renderer:
    """A chat template with the special tokens of its tokenizer."""

    def __init__(self, template: ChatTemplate, special: Iterable[str]) -> None:
        self._template = template
        # The longest first: one special token may begin another.
        by_length = sorted(special, key=lambda token: (-len(token), token))
        self.special = re.compile("|".join(map(re.escape, by_length)) or "(?!)")

    def render(self, messages: Messages) -> Conversation:
        """Render messages that hold at least one answer.

        Raises:
            BadRecord: the template refuses them, a message spells a special token (which would
                end a turn where none ends), or the answers cannot be found.
        """
        for number, message in enumerate(messages, 1):
            if found := self.special.search(message["content"] + "\0" + message["role"]):
                raise BadRecord(
                    "special-token",
                    f"message {number} spells the tokenizer's special token {found[0]!r}",
                )
        text = self._text(messages, False)
        answers = [
            self._answer(text, self._text(messages[:number], True), message["content"], number)
            for number, message in enumerate(messages)
            if message["role"] == ASSISTANT
        ]
        return Conversation(text, answers)

    def _text(self, messages: Messages, add_generation_prompt: bool) -> str:
        try:
            return self._template.render(messages, add_generation_prompt=add_generation_prompt)
        except RequestError as error:
            raise BadRecord("template-refused", error.message) from error

    def _answer(self, text: str, prompt: str, content: str, number: int) -> tuple[int, int]:
        if not text.startswith(prompt):
            raise BadRecord(
                "template-refused",
                f"the chat template writes what comes before message {number + 1} in another "
                "way once that message is there",
            )
        content = content.strip()
        place = text.find(content, len(prompt))
        # A template may leave a part of the answer out (thoughts): then its turn's end tells.
        if place >= 0 and self.special.search(text, len(prompt), place):
            place = -1  # in a later turn
        content_end = place + len(content) if place >= 0 else len(prompt)
        turn_end = self.special.search(text, content_end)
        if turn_end and (place < 0 or not text[content_end : turn_end.start()].strip()):
            return len(prompt), turn_end.end()
        if place < 0:
            raise BadRecord(
                "template-refused",
                f"message {number + 1} cannot be found in what the chat template makes of it",
            )
        return len(prompt), content_end


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Spelling of the tokens that a tokenizer takes for control tokens wherever they stand."""
    return [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
