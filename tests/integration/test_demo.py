"""`raylm demo` made small, then what it printed, then `raylm down`; and `raylm serve` in front."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from openai import OpenAI

from raylm.record import RunResult
from raylm.store import Store
from tests.integration.processes import end, no_orphans, orphans, start, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SMALL = (
    "train.time_s=5", f"data.paths={sysconfig.get_path('stdlib')}/json", "data.seq_len=64",
    "data.pattern=**/*.py", "data.held_out=0.2", "data.tokenizer.vocab_size=400",
    "data.exclude=[]", "serve.port=0", "compress.gate.max_kl=0.2",
    "compress.gate.min_top1_agreement=0.5", "compress.gate.max_perplexity_ratio=1.2",
)  # fmt: skip


def test_the_demo_ends_with_an_answer_and_lines_that_work(tmp_path: Path) -> None:
    flags = [part for value in SMALL for part in ("--set", value)]
    try:
        process = start("demo", *flags, "-o", "json", store=tmp_path)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        result = json.loads(out)
        assert [s["state"] for s in result["run"]["stages"]] == ["done"] * 4
        assert Path(result["run"]["report"]).stat().st_size > 5000
        curl = subprocess.run(["bash", "-c", result["curl"]], capture_output=True, timeout=60)
        assert json.loads(curl.stdout)["usage"]["completion_tokens"] > 0
        python = subprocess.run(
            [sys.executable, "-c", result["python"]], capture_output=True, text=True, timeout=60
        )
        assert python.returncode == 0, python.stderr
    finally:
        down = start("down", store=tmp_path)
        _, err = down.communicate(timeout=120)
    assert down.returncode == 0, err
    no_orphans(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_serve_in_the_foreground_ends_with_everything_it_started(
    finished: RunResult, store: Store, tmp_path: Path, number: signal.Signals
) -> None:
    compressed = finished.of("compress")
    assert compressed is not None
    folder = store.resolve(str(compressed.ref)).path
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        if file.name != "manifest.json":
            (copy / file.name).write_bytes(file.read_bytes())
    place = tmp_path / "store"
    process = start("serve", str(copy), "--port", "0", "--replicas", "1", store=place)
    endpoint = place / "cluster" / "endpoint.json"
    wait_for(endpoint.exists, process, 240)
    assert orphans(place)
    with OpenAI(base_url=json.loads(endpoint.read_text())["url"], api_key="none") as client:
        answer = client.completions.create(model="model", prompt="def ", max_tokens=8)
        assert answer.usage is not None
        assert 1 <= answer.usage.completion_tokens <= 8
    err = end(process, number, 120)
    assert process.returncode == (130 if number == signal.SIGINT else 143), err
    assert "Traceback" not in err
    no_orphans(place)
