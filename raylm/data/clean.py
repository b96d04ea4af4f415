"""Bytes to text that can be trained on: decoding, repair, normalisation."""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass

_MAX_ODD = 0.1
"""Share of undecodable or control bytes beyond which a file is not taken for text."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROL_BYTES = bytes(b for b in range(32) if b not in b"\t\n\r\f\x1b") + b"\x7f"
_SURROGATES = re.compile("[\ud800-\udfff]")
_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # in this order: the mark of UTF-32-LE starts with that of UTF-16-LE


class NotText(ValueError):
    """Raised for bytes that are not text; `reason` is its code, the message for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text, and whether something in it had to be replaced."""

    text: str
    repaired: bool = False


def decode(data: bytes) -> Decoded:
    """Decode UTF-8 (UTF-16 and UTF-32 with a byte order mark); what is invalid becomes U+FFFD.

    Raises:
        NotText: NULs, mostly control bytes (`binary`), or mostly invalid UTF-8 (`not-utf8`).
    """
    for mark, encoding in _WIDE.items():
        if data.startswith(mark):
            text = data.decode(encoding, "replace")
            return Decoded(text, "\ufffd" in text)
    if b"\0" in data:
        raise NotText("binary", "it contains NUL bytes")
    controls = len(data) - len(data.translate(None, _CONTROL_BYTES))
    if controls > _MAX_ODD * len(data):
        raise NotText("binary", f"{controls / len(data):.0%} of it are control bytes")
    try:
        return Decoded(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        text = data.decode("utf-8-sig", "replace")
    # Each replacement stands for one to three bytes; those in the source itself are few.
    odd = text.count("\ufffd")
    if odd > _MAX_ODD * len(text):
        raise NotText(
            "not-utf8", f"{odd / len(text):.0%} of it is not UTF-8 (iconv -t utf-8 converts it)"
        )
    return Decoded(text, repaired=True)


def clean(text: str, *, normalize: bool, fix_mojibake: bool) -> Decoded:
    """Make text encodable, and, if asked, right and uniform.

    Surrogates that JSON escapes left are joined where they are pairs and replaced where they
    are alone. `normalize` gives NFC, `\\n` line ends, and no control characters but tab and
    newline; a trailing newline stays as it is.
    """
    repaired = False
    if _SURROGATES.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        repaired = True
    if fix_mojibake:
        import ftfy

        fixed = ftfy.fix_encoding(text)
        repaired, text = repaired or fixed != text, fixed
    if normalize:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        text = _CONTROLS.sub("", text).removeprefix("\ufeff")
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    return Decoded(text, repaired)
