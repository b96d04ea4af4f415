"""raylm demo."""

from __future__ import annotations

import sys

from raylm.cli.options import Output, Sets
from raylm.cli.output import emit, human_s, say, table
from raylm.cli.progress import progress


def demo(sets: Sets = None, output: Output = "text") -> None:
    """The whole way once: text, training, evaluation, compression, an endpoint, an answer.

    The text is the source of this machine's own Python standard library. The endpoint stays
    up; `raylm down` ends it.
    """
    from raylm.demo import run_demo, summary

    answer = sys.stderr if output == "json" else sys.stdout

    def show(text: str) -> None:
        answer.write(text)
        answer.flush()

    with progress() as report:
        result = run_demo(overrides=sets or [], report=report, show=show)
    say("\n")
    page = result.run.path / "report.html"
    lines = [
        table(("", "trained", "compressed"), summary(result.run)),
        "",
        f"in all {human_s(result.seconds)}; serving {result.model} at {result.url}",
        "",
        result.curl,
        "",
        result.python,
        "",
        *([f"report: {page}"] if page.is_file() else []),
        "talk to it: raylm chat    end it: raylm down",
    ]
    emit(result.to_dict(), "\n".join(lines), output)
