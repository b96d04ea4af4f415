"""Globs over relative paths with `/`, where `**` spans folders (pathlib's come in 3.13)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=256)
def compile_glob(glob: str) -> re.Pattern[str]:
    """A pattern to `fullmatch`: `**/` any folders or none, `*` and `?` within one name."""
    out, at = [], 0
    while at < len(glob):
        if glob.startswith("**/", at):
            out.append("(?:[^/]+/)*")
            at += 3
        elif glob.startswith("**", at):
            out.append(".*")
            at += 2
        elif glob[at] == "*":
            out.append("[^/]*")
            at += 1
        elif glob[at] == "?":
            out.append("[^/]")
            at += 1
        elif glob[at] == "[" and (end := glob.find("]", at + 2)) > 0:
            body = glob[at + 1 : end].replace("\\", r"\\")
            out.append(f"[^{body[1:]}]" if body[0] == "!" else f"[{body}]")
            at = end + 1
        else:
            out.append(re.escape(glob[at]))
            at += 1
    return re.compile("".join(out), re.DOTALL)


def matches(path: str, globs: Sequence[str]) -> bool:
    """Whether a relative path, or a folder above it, fits one of the globs."""
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    return any(compile_glob(g.rstrip("/")).fullmatch(p) for g in globs for p in above)
