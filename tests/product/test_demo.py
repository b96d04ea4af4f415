"""`raylm demo` made small, then what it printed, then `raylm down`; and `raylm serve` in front."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from raylm.store import Store
from tests.product.processes import end, no_orphans, orphans, start, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

SMALL = (
    "train.time_s=5", f"data.paths={sysconfig.get_path('stdlib')}/json", "data.seq_len=64",
    "data.pattern=**/*.py", "data.held_out=0.2", "data.tokenizer.vocab_size=400",
    "data.exclude=[]", "serve.port=0", "compress.gate.max_kl=0.2",
    "compress.gate.min_top1_agreement=0.5", "compress.gate.max_perplexity_ratio=1.2",
)  # fmt: skip


@dataclass(frozen=True)
class Demo:
    """What a demo left, after it was taken down."""

    store: Path
    result: dict[str, Any]
    """What it said on stdout."""
    answers: list[subprocess.CompletedProcess[str]]
    """To the curl and the Python lines that it printed, while it served."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    store = tmp_path_factory.mktemp("demo")
    flags = [part for value in SMALL for part in ("--set", value)]
    answers: list[subprocess.CompletedProcess[str]] = []
    try:
        process = start("demo", *flags, "-o", "json", store=store)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        result = json.loads(out)
        for command in (["bash", "-c", result["curl"]], [sys.executable, "-c", result["python"]]):
            answers.append(subprocess.run(command, capture_output=True, text=True, timeout=60))
    finally:
        down = start("down", store=store)
        _, err = down.communicate(timeout=120)
    assert down.returncode == 0, err
    return Demo(store, result, answers)


def test_the_demo_ends_with_an_answer_and_lines_that_work(demo: Demo) -> None:
    run, (curl, python) = demo.result["run"], demo.answers
    assert [stage["state"] for stage in run["stages"]] == ["done"] * 4
    assert Path(run["report"]).stat().st_size > 5000
    assert json.loads(curl.stdout)["usage"]["completion_tokens"] > 0
    assert python.returncode == 0, python.stderr
    no_orphans(demo.store)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.faults),
    ],
)
def test_serve_in_the_foreground_ends_with_everything_it_started(
    demo: Demo, tmp_path: Path, number: signal.Signals
) -> None:
    stages = {stage["stage"]: stage["ref"] for stage in demo.result["run"]["stages"]}
    folder = Store(demo.store).resolve(stages["compress"]).path
    copy = tmp_path / "model"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("manifest.json"))
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
