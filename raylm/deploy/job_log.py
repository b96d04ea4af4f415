"""JobLog: what a run that is a job writes: lines for people, its result, or its error.

Ray keeps one log of a job, standard output and standard error together. `raylm run -o json`
writes lines as it goes, and at its end either one JSON document or `error[code]: ...`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_ERROR = re.compile(r"error\[([a-z0-9-]+)\]: (.*)")


class JobLog:
    """Reads a log in pieces of any size; `close` when it is at its end."""

    def __init__(self, show: Callable[[str], None] | None = None) -> None:
        """`show` gets each line for people, without its end, as soon as it is whole."""
        self.result: dict[str, Any] | None = None
        """The run's JSON document, once it was read."""
        self._show = show or (lambda line: None)
        self._rest = ""
        self._document: list[str] = []
        self._error: list[str] = []

    def feed(self, text: str) -> None:
        """Take the next piece."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """The log is at its end; what was no whole line or document is shown as it is."""
        if self._rest:
            self._line(self._rest)
            self._rest = ""
        self._give_up()

    @property
    def error(self) -> dict[str, str | None] | None:
        """The last error that raylm printed: code, message and hint."""
        if not self._error:
            return None
        found = _ERROR.match(self._error[0])
        assert found is not None
        rest = self._error[1:]
        at = next((i for i, line in enumerate(rest) if line.startswith("hint: ")), None)
        message = [found[2], *(rest[:at] if at is not None else ())]
        hint = rest[at].removeprefix("hint: ") if at is not None else None
        return {"code": found[1], "message": "\n".join(message), "hint": hint}

    def _line(self, line: str) -> None:
        if self._document or line == "{":
            self._document.append(line)
            if line == "{" and len(self._document) > 1:
                # The one before was none.
                self._document.pop()
                self._give_up()
                self._document = [line]
            elif line == "}":
                self._read_document()
            return
        if _ERROR.match(line):
            self._error = [line]
        elif self._error and not any(said.startswith("hint: ") for said in self._error):
            self._error.append(line)
        self._show(line)

    def _read_document(self) -> None:
        try:
            found = json.loads("\n".join(self._document))
        except ValueError:
            found = None
        if isinstance(found, dict) and "stages" in found:
            self.result, self._document = found, []
        else:
            self._give_up()

    def _give_up(self) -> None:
        for line in self._document:
            self._show(line)
        self._document = []
