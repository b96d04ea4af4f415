"""The blocks of docs/bench.md, executed against a server in this process."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from raylm.cli import main
from tests.bench.server import Answer

PAGE = (Path(__file__).parents[2] / "docs/bench.md").read_text(encoding="utf-8")


def test_every_line_works_as_written_but_for_its_time(
    serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    server = serve(Answer(tokens=4))
    (trace,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    Path("trace.jsonl").write_text(trace)
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = block.strip().splitlines()
    assert len(lines) == 5
    for line in lines:
        line = line.replace("http://127.0.0.1:8000/v1", server.url).replace("60s", "1s")
        name, *args = shlex.split(line)
        assert name == "raylm"
        if "--html" not in args:  # the ceiling of one is enough
            args.append("--no-ceiling")
        assert main(args) == 0, capsys.readouterr().err
    assert Path("old.html").is_file()
    assert '"verdict"' in capsys.readouterr().out
