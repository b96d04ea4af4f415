"""`raylm bench` against a server whose delays and failures are known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.server import Answer

SHORT = ("--prompt-tokens", "5", "--max-tokens", "4", "--timeout", "30s", "--no-ceiling")


def levels(done) -> list[dict]:
    assert done.code == 0, done.err
    return [level["figures"] for level in done.json["levels"]]


def test_a_closed_loop_measures_what_the_server_was_told_to_take(raylm, serve) -> None:
    server = serve(Answer(wait_s=0.1, gap_s=0.02, pieces=4, tokens=8))
    done = raylm("bench", "--url", server.url, "--concurrency", "1,4", "--requests", "12",
                 "--slo", "ttft=60s", *SHORT, "-o", "json")  # fmt: skip
    for found, clients in zip(levels(done), (1, 4), strict=True):
        assert (found["num_requests"], found["num_ok"], found["failures"]) == (12, 12, {})
        assert found["latency"]["ttft"]["percentiles"]["p50"] >= 0.1
        # Four pieces 20 ms apart that are eight tokens; one that is read late comes closer to the
        # next.
        assert found["latency"]["gap"]["mean"] >= 0.7 * 0.02
        assert found["latency"]["tpot"]["mean"] >= 0.7 * 3 * 0.02 / 7
        # Twelve, and what of the others may end at the window's edges; in as many rounds.
        least_s = 12 / clients * (0.1 + 3 * 0.02) * 0.9
        assert found["requests_per_s"] <= (12 + 2 * (clients - 1)) / least_s
        assert found["output_tokens_per_s"] <= 8 * (12 + 2 * (clients - 1)) / least_s
        assert (found["prompt_tokens"], found["output_tokens"]) == (7, 8)
        assert found["goodput"]["share"] == 1.0
    one, four = levels(done)
    assert [line for line in done.json["warnings"] if "edges" in line] == [
        "4 clients: 12 requests of 4 clients: the edges of the window weigh in the rates"
    ]
    assert four["requests_per_s"] > one["requests_per_s"]
    assert done.json["settings"]["model"] == "tiny"
    assert done.json["partial"] is False
    assert server.bodies[0] | {"prompt": ""} == {
        "model": "tiny", "prompt": "", "max_tokens": 4, "temperature": 0.0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_both_loops_send_the_same_prompts_and_what_was_asked_for(raylm, serve) -> None:
    server = serve(Answer(tokens=4))
    for loop in (("--concurrency", "1"), ("--rate", "50", "--burstiness", "2")):
        done = raylm("bench", "--url", server.url, *loop, "--requests", "5", "--warmup", "0",
                     "--endpoint", "chat", "--ignore-eos", "--temperature", "0.5", "--model", "m",
                     "--header", "X-Tenant: a", *SHORT)  # fmt: skip
        assert done.code == 0, done.err
    first, second = server.bodies[:5], [
        body for body in server.bodies[5:] if body["messages"] in
        [other["messages"] for other in server.bodies[:5]]
    ]  # fmt: skip
    assert sorted(map(json.dumps, first)) == sorted(map(json.dumps, second))
    assert all(b["ignore_eos"] is True and b["temperature"] == 0.5 for b in server.bodies)
    assert all(len(b["messages"][0]["content"].split()) == 5 for b in server.bodies)
    assert {headers[b"x-tenant"] for headers in server.headers} == {b"a"}


def test_a_server_that_stands_still_shows_in_many_requests_of_an_open_loop(raylm, serve) -> None:
    def stall(number: int, body: object) -> Answer:
        if number == 10:
            server.stalled_until = time.monotonic() + 1.0
        return Answer(tokens=4)

    server = serve(stall)
    path = "run.json"
    done = raylm("bench", "--url", server.url, "--rate", "40", "--requests", "80", "--warmup", "0",
                 "--save", path, *SHORT, "-o", "json")  # fmt: skip
    (found,) = levels(done)
    assert (found["num_ok"], found["num_requests"]) == (80, 80)
    records = json.loads(Path(path).read_text())["levels"][0]["records"]
    slow = [
        r for r in records if r["chunks_at_s"] and r["chunks_at_s"][0] - r["scheduled_at_s"] > 0.5
    ]
    # Those that were due in the first half of the second: 20 on average.
    assert len([r for r in slow if r["phase"] == "measured"]) >= 8

    server.bodies.clear()
    server.stalled_until = 0.0
    done = raylm("bench", "--url", server.url, "--concurrency", "1", "--requests", "80",
                 "--warmup", "0", *SHORT, "-o", "json")  # fmt: skip
    (found,) = levels(done)
    # A closed loop hides it: one of eighty.
    assert found["latency"]["ttft"]["max"] >= 0.9
    assert found["latency"]["ttft"]["percentiles"]["p90"] < 0.9


def test_failures_are_counted_by_class_and_nothing_is_sent_twice(raylm, serve) -> None:
    kinds = (
        Answer(tokens=4),
        Answer(status=503, headers=((b"retry-after", b"1"),)),
        Answer(is_done=False, is_finished=False, is_whole=False),
        Answer(status=500),
        Answer(pieces=3),
    )
    server = serve(lambda number, body: kinds[number % 5])
    done = raylm("bench", "--url", server.url, "--concurrency", "1", "--requests", "25",
                 "--warmup", "0", "--slo", "e2e=60s", *SHORT, "-o", "json")  # fmt: skip
    (found,) = levels(done)
    assert found["failures"] == {"refused 503": 5, "broken stream": 5, "http 500": 5}
    assert (found["num_ok"], found["num_without_usage"]) == (10, 5)
    assert found["goodput"]["share"] == pytest.approx(10 / 25)
    assert len(server.bodies) == 25
    assert found["output_tokens"] == pytest.approx((4 + 3) / 2)
    text = raylm("bench", "--url", server.url, "--concurrency", "1", "--requests", "10", *SHORT)
    assert "failed: 2 x refused 503" in text.out
    assert "beware: 1 client: 2 answers came without usage" in text.out


def test_a_trace_says_what_is_sent_when(raylm, serve) -> None:
    server = serve(Answer(tokens=4))
    entries = [{"at_s": i / 20, "prompt": f"p{i}", "max_tokens": i + 1} for i in range(6)]
    entries.append({"at_s": 0.4, "prompt_tokens": 9, "max_tokens": 2})
    Path("trace.jsonl").write_text("\n".join(map(json.dumps, entries)))
    done = raylm("bench", "--url", server.url, "--trace", "trace.jsonl", "--warmup", "1",
                 "--no-ceiling", "-o", "json")  # fmt: skip
    (found,) = levels(done)
    assert found["num_requests"] == 6
    assert found["window_s"] >= 0.35
    sent = {body["prompt"]: body["max_tokens"] for body in server.bodies}
    assert {name: sent[name] for name in sent if name.startswith("p") and " " not in name} == {
        f"p{i}": i + 1 for i in range(6)
    }
    assert [len(name.split()) for name in sent if " " in name] == [9]


def test_the_older_run_is_compared_and_gates_only_when_asked(raylm, serve) -> None:
    server = serve(Answer(tokens=4))
    load = ("--concurrency", "2", "--requests", "40", *SHORT)
    assert raylm("bench", "--url", server.url, *load, "--save", "old.json").code == 0
    server.answer = lambda number, body: Answer(wait_s=0.3, tokens=4)
    slower = ("bench", "--url", server.url, *load, "--compare", "old.json", "--html", "new.html")
    done = raylm(*slower, "-o", "json")
    assert done.code == 0
    verdicts = {r["figure"]: r["verdict"] for r in done.json["comparison"]["ratios"]}
    assert verdicts["ttft p50"] == verdicts["e2e p50"] == "slower"
    assert "Beside the older run" in Path("new.html").read_text()
    done = raylm(*slower, "--fail-if-slower", "1.1")
    assert done.code == 4
    assert "verdict: slower in" in done.out
    assert "error[bench-slower]: slower by 1.1 or more: ttft p50 at 2 clients" in done.err
    done = raylm(*slower, "--fail-if-slower", "1.1", "--temperature", "1")
    assert (done.code, "temperature: 0.0 before, 1.0 now" in done.err) == (2, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_what_was_measured(serve, tmp_path: Path, number: signal.Signals) -> None:
    # Every other answer never comes while the test lasts.
    server = serve(lambda n, body: Answer(wait_s=0.01 if n % 2 else 3600.0, tokens=4))
    path = tmp_path / "run.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "raylm", "bench", "--url", server.url, "--rate", "20", "--duration",
         "60s", "--warmup", "0", "--save", str(path), *SHORT, "-o", "json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(server.bodies) < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert number.name in err
    found = json.loads(out)
    assert (found["partial"], found["stopped"]) == (True, number.name)
    figures = found["levels"][0]["figures"]
    assert figures["num_ok"] >= 1
    assert figures["num_cut"] >= 4
    assert figures["num_ok"] + figures["num_cut"] == figures["num_requests"]
    assert json.loads(path.read_text())["partial"] is True
    # Every request that the server has was taken back. Of those that were cut, it may never have
    # had some, and have answered others to the end.
    deadline = time.monotonic() + 60
    while (left := server.num_left) < (len(server.bodies) + 1) // 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 4 <= left <= figures["num_cut"]


def test_the_time_of_all_levels_is_bounded(raylm, serve) -> None:
    server = serve(Answer(tokens=4))
    done = raylm("bench", "--url", server.url, "--concurrency", "1,2", "--duration", "60s",
                 "--max-time", "700ms", *SHORT, "-o", "json")  # fmt: skip
    assert done.code == 0
    assert [level["name"] for level in done.json["levels"]] == ["1 client"]
    assert done.json["stopped"] == "--max-time"
    assert any(line.startswith("partial: ended by --max-time") for line in done.json["warnings"])


def test_what_was_measured_is_told_though_it_cannot_be_saved(raylm, serve) -> None:
    Path("taken").mkdir()
    done = raylm("bench", "--url", serve().url, "--concurrency", "1", "--requests", "2", *SHORT,
                 "--save", "taken", "-o", "json")  # fmt: skip
    assert done.code != 0
    assert done.json["levels"][0]["figures"]["num_ok"] == 2


def test_a_part_of_a_run_passes_no_gate(raylm, serve) -> None:
    load = ("bench", "--url", serve().url, "--concurrency", "1", "--duration", "60s", *SHORT)
    assert raylm(*load, "--max-time", "500ms", "--save", "old.json").code == 0
    done = raylm(*load, "--max-time", "500ms", "--compare", "old.json", "--fail-if-slower", "9")
    assert (done.code, "error[bench-partial]" in done.err) == (4, True)


def test_a_missing_http_client_is_told_with_the_line_to_install_it(raylm, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    done = raylm("bench", "--url", "http://127.0.0.1:9/v1", "--rate", "1")
    assert (done.code, "pip install 'raylm[bench]'" in done.err) == (3, True)


def test_no_answer_at_all_is_a_failure(raylm, serve) -> None:
    server = serve(Answer(status=503))
    done = raylm("bench", "--url", server.url, "--concurrency", "1", "--requests", "3", *SHORT)
    assert done.code == 1
    assert "error[bench-no-answer]: no request was answered: refused 503" in done.err


def test_keys_are_read_and_not_told(raylm, serve) -> None:
    server = serve(Answer(tokens=4))
    Path("key").write_text("sk-secret\n")
    done = raylm("bench", "--url", server.url, "--concurrency", "1", "--requests", "2",
                 "--key-file", "key", "--header", "X-Also: hidden-too", "--save", "run.json",
                 "--html", "run.html", *SHORT, "-o", "json")  # fmt: skip
    assert done.code == 0, done.err
    assert server.headers[-1][b"authorization"] == b"Bearer sk-secret"
    for text in (done.out, done.err, Path("run.json").read_text(), Path("run.html").read_text()):
        assert "sk-secret" not in text
        assert "hidden-too" not in text


URL = ("--url", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (URL, 2, "one of --rate, --concurrency, --trace is needed, not none"),
        ((*URL, "--rate", "1", "--concurrency", "1"), 2, "not --rate and --concurrency"),
        ((*URL, "--rate", "1,x"), 2, "--rate: '1,x': numbers above 0"),
        ((*URL, "--rate", "0"), 2, "numbers above 0"),
        ((*URL, "--rate", ""), 2, "numbers above 0"),
        ((*URL, "--rate", "2,4,2"), 2, "--rate: a level is given twice"),
        ((*URL, "--concurrency", "1.5"), 2, "--concurrency: '1.5'"),
        ((*URL, "--concurrency", "1", "--burstiness", "2"), 2, "--burstiness has no effect"),
        ((*URL, "--rate", "1", "--requests", "1", "--duration", "1s"), 2, "--duration has no"),
        ((*URL, "--trace", "t", "--max-tokens", "1"), 2, "--max-tokens has no effect with --trace"),
        ((*URL, "--rate", "1", "--prompts", "p", "--prompt-tokens", "1"), 2, "--prompt-tokens has"),
        ((*URL, "--rate", "1", "--fail-if-slower", "2"), 2, "without --compare"),
        ((*URL, "--rate", "1", "--save", "no/where.json"), 2, "no folder no"),
        ((*URL, "--rate", "1", "--slo", "tftt=1s"), 2, "did you mean 'ttft'?"),
        ((*URL, "--rate", "1", "--header", "X"), 2, "`Name: value` is wanted"),
        ((*URL, "--rate", "1", "--key-file", "none"), 2, "--key-file: cannot read none"),
        ((*URL, "--concurrency", "9", "--max-in-flight", "8"), 2, "--max-in-flight 9"),
        ((*URL, "--rate", "90", "--max-requests", "9"), 2, "2,710 requests are above"),
        ((*URL, "--trace", "empty"), 2, "--trace: cannot read empty"),
        ((*URL, "--rate", "1", "--compare", "none"), 2, "none is no run"),
        ((*URL, "--rate", "1", "--timeout", "1h"), 2, "--timeout: '1h' is not a duration"),
        ((*URL, "--rate", "1"), 3, "nothing answers at http://127.0.0.1:9/v1"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(raylm, args, code: int, told: str) -> None:
    done = raylm("bench", *args)
    assert (done.code, done.out) == (code, "")
    assert told in done.err


def test_prompts_that_do_not_fit_the_endpoint_are_told(raylm) -> None:
    Path("p.jsonl").write_text('{"messages": []}')
    done = raylm("bench", *URL, "--rate", "1", "--prompts", "p.jsonl")
    assert (done.code, "messages are for --endpoint chat" in done.err) == (2, True)
    Path("p.jsonl").write_text('{"prompt": [1, 2]}')
    done = raylm("bench", *URL, "--rate", "1", "--prompts", "p.jsonl", "--endpoint", "chat")
    assert (done.code, "token ids are for" in done.err) == (2, True)


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys; import raylm.bench.run, raylm.bench.report; "
        "print([m for m in ('ray', 'torch', 'transformers', 'openai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
