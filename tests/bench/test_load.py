"""Arrivals, traces and prompts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from raylm.bench.arrivals import gamma_arrivals, read_trace
from raylm.bench.prompts import read_prompts, synthetic, synthetic_text
from raylm.errors import ConfigError


def gaps(rate: float, burstiness: float, seed: int = 0) -> np.ndarray:
    return np.diff(list(itertools.islice(gamma_arrivals(rate, burstiness, seed), 20_000)))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_their_rate_and_their_burstiness(burstiness: float) -> None:
    found = gaps(8.0, burstiness)
    assert found.mean() == pytest.approx(1 / 8, rel=0.05)
    # Of a gamma distribution of shape k the deviation is mean / sqrt(k); of a Poisson process 1.
    assert found.std() / found.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert np.array_equal(gaps(8.0, 1.0, 3), gaps(8.0, 1.0, 3))
    assert not np.array_equal(gaps(8.0, 1.0, 3), gaps(8.0, 1.0, 4))


def test_a_trace_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [{"at_s": 2, "prompt": "b", "max_tokens": 3},
             {"at_s": 0.5, "prompt_tokens": 9, "max_tokens": 4}]  # fmt: skip
    path.write_text("\n\n".join(map(json.dumps, lines)))
    assert [(e.at_s, e.prompt, e.prompt_tokens, e.max_tokens) for e in read_trace(path)] == [
        (0.5, None, 9, 4),
        (2.0, "b", None, 3),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"at_s": 1, "max_tokens": 3}', "one of prompt and prompt_tokens"),
        ('{"at_s": 1, "prompt": "a", "prompt_tokens": 1, "max_tokens": 3}', "one of prompt and"),
        ('{"at_s": -1, "prompt": "a", "max_tokens": 3}', "at_s: "),
        ('{"at_s": 1, "prompt": "a"}', "max_tokens: "),
        ('{"at_s": 1, "prompt": "a", "max_tokens": 3, "top_p": 1}', "top_p: "),
        ("at_s", "Invalid JSON"),
    ],
)
def test_what_is_no_trace_is_told_with_its_place(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at_s": 0, "prompt": "a", "max_tokens": 3}\n' + line)
    with pytest.raises(ConfigError, match=f"entry 2: .*{told}"):
        read_trace(path)


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_a_file_that_is_missing_or_empty_is_told(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="--prompts"):
        read_prompts(path)


def test_synthetic_prompts_have_their_lengths_and_differ() -> None:
    make = synthetic(0, (3, 50))
    texts = [make(index)["prompt"] for index in range(40)]
    assert {len(text.split()) for text in texts} == {3, 50}
    assert len(set(texts)) == 40
    assert texts == [synthetic(0, (3, 50))(index)["prompt"] for index in range(40)]
    assert synthetic(1, (50,))(0) != synthetic(0, (50,))(0)
    assert len(synthetic_text(0, 5, 17).split()) == 17


def test_prompts_of_a_file_come_in_turn(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\n two \n")
    assert [read_prompts(text)(i) for i in range(3)] == [
        {"prompt": "one"}, {"prompt": " two "}, {"prompt": "one"},
    ]  # fmt: skip
    lines = tmp_path / "prompts.jsonl"
    asked = [{"prompt": [1, 2]}, {"messages": [{"role": "user", "content": "Hello"}]}]
    lines.write_text("\n".join(map(json.dumps, asked)))
    assert [read_prompts(lines)(i) for i in range(2)] == asked


@pytest.mark.parametrize("line", ["text", "[1]", '{"text": "a"}', '{"prompt": "a", "n": 2}'])
def test_what_is_no_prompt_is_told_with_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' + line)
    with pytest.raises(ConfigError, match="entry 2: "):
        read_prompts(path)
