"""A lost engine replica is not noticed by the clients of its answers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raylm.serve.app import Endpoint
from tests.serve.deployed import ours, replicas, until
from tests.serve.kills import (
    FAULTS,
    MARKS,
    NUM_TOKENS,
    PROXIES,
    Seen,
    deployed,
    lose,
    read,
    run,
    stream_all,
    table,
)  # fmt: skip
from tests.serve.streams import Stream

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
NUM_STREAMS = 12


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with deployed(tmp_path_factory.mktemp("kills") / "work", "haproxy") as endpoint:
        yield endpoint


@pytest.mark.parametrize("fault", FAULTS)
def test_streams_go_on_by_another_replica(endpoint: Endpoint, fault: str) -> None:
    expected = stream_all(endpoint, NUM_STREAMS, None)
    seen = lose(endpoint, fault, "haproxy", expected, replicas("engine-tiny")[0])
    assert seen.num_continued > 0
    assert (seen.num_errors, seen.num_incomplete, seen.num_differing) == (0, 0, 0)


@pytest.mark.faults
def test_answers_go_on_without_the_controller_and_replicas_come_again(endpoint: Endpoint) -> None:
    expected = stream_all(endpoint, NUM_STREAMS, None)
    (controller,) = ours("ray::ServeController")
    found = stream_all(endpoint, NUM_STREAMS, controller, signal.SIGKILL)
    assert [stream.text for stream in found] == [stream.text for stream in expected]
    assert whole(found) == NUM_STREAMS
    # The new controller knows what there should be.
    until(lambda: [p.pid for p in ours("ray::ServeController")] not in ([], [controller.pid]))
    seen = lose(endpoint, "kill -9", "haproxy", expected, replicas("engine-tiny")[0])
    assert (seen.num_errors, seen.num_incomplete) == (0, 0)


@pytest.mark.faults
def test_a_killed_gateway_cuts_its_streams_visibly_and_no_others(endpoint: Endpoint) -> None:
    found = stream_all(endpoint, NUM_STREAMS, replicas("gateway")[0], signal.SIGKILL)
    assert 0 < whole(found) < NUM_STREAMS
    assert cut(found) == NUM_STREAMS - whole(found)
    until(lambda: whole(stream_all(endpoint, 2, None)) == 2)


@pytest.mark.faults
def test_a_killed_proxy_cuts_its_streams_visibly_and_comes_again(endpoint: Endpoint) -> None:
    proxies = ours("bin/haproxy")
    for proxy in proxies[1:]:
        proxy.kill()
    found = stream_all(endpoint, NUM_STREAMS, proxies[0], signal.SIGKILL)
    assert cut(found) == NUM_STREAMS - whole(found)
    until(lambda: whole(stream_all(endpoint, 2, None)) == 2)


def whole(streams: Sequence[Stream]) -> int:
    """Streams that ended as they should."""
    ends = [(stream.error, stream.finish_reason, stream.num_tokens) for stream in streams]
    return ends.count((None, "length", NUM_TOKENS))


def cut(streams: Sequence[Stream]) -> int:
    """Streams that raised in their client, and did not end before."""
    return sum(stream.error is not None and stream.finish_reason is None for stream in streams)


@pytest.mark.faults
@pytest.mark.timeout(5400)
def test_twenty_rounds_with_each_proxy(tmp_path: Path) -> None:
    seen = run(tmp_path / "kills.json", PROXIES, rounds=20, num_streams=32)
    assert len(seen) == 20 * len(PROXIES) * len(FAULTS)
    assert sum(each.num_continued for each in seen) > len(seen)
    assert sum(each.num_errors + each.num_incomplete for each in seen) == 0
    # Another batch rounds otherwise: a near tie may fall to the other side.
    assert sum(each.num_differing for each in seen) <= 0.01 * 32 * len(seen)


def test_the_table_in_the_docs_is_that_of_the_campaign() -> None:
    docs = Path(__file__).parent.parent.parent / "docs"
    shown = (docs / "serving.md").read_text().split(MARKS[0])[1].split(MARKS[1])[0]
    assert shown.strip() == table(read(docs / "kills.json"))


def test_a_line_for_each_fault_and_proxy() -> None:
    seen = [
        Seen("kill -9", "haproxy", 4, 0, 0, 1, 2, (0.1, 0.2, 0.3, 0.4)),
        Seen("kill -9", "haproxy", 4, 1, 1, 0, 3, (0.1, 0.2, 0.3, 0.9)),
        Seen("kill -9", "serve", 4, 0, 0, 0, 1, (0.1, 0.1, 0.1, 0.1)),
    ]
    assert table(seen).splitlines()[2:] == [
        "| kill -9 | haproxy | 2 | 8 | 5 | 1 | 1 | 1 | 0.25 | 0.40 | 0.90 |",
        "| kill -9 | serve | 1 | 4 | 1 | 0 | 0 | 0 | 0.10 | 0.10 | 0.10 |",
    ]
