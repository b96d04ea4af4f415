"""What is made by a script and stands between two marks of a page."""

from __future__ import annotations

from pathlib import Path


def put_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between the marks of a page."""
    begin, end = marks
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")
