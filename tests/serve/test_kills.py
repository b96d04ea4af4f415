"""A lost engine replica is not noticed by the clients of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from raylm.serve.app import Endpoint
from raylm.store import Store
from tests.serve.deployed import SHARED, ours, replicas, until
from tests.serve.kills import (
    FAULTS,
    MARKS,
    PROXIES,
    Seen,
    Undisturbed,
    deployed,
    lose,
    read,
    run,
    stream_all,
    table,
    undisturbed,
)  # fmt: skip
from tests.serve.streams import Stream

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
NUM_STREAMS = 12
MAX_ROUNDS = 3
"""Whatever a machine does in between: in one of them the replica that is lost has answers."""


@pytest.fixture(scope="module")
def endpoint(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    with deployed(tmp_path_factory.mktemp("kills"), store) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def expected(endpoint: Endpoint) -> Undisturbed:
    return undisturbed(endpoint, NUM_STREAMS)


@pytest.mark.parametrize("fault", FAULTS)
def test_streams_go_on_by_another_replica(
    endpoint: Endpoint, expected: Undisturbed, fault: str
) -> None:
    num_continued = 0
    for _ in range(MAX_ROUNDS):
        seen = lose(endpoint, fault, "haproxy", expected, replicas("engine-tiny")[0])
        assert (seen.num_errors, seen.num_incomplete, seen.num_differing) == (0, 0, 0)
        num_continued += seen.num_continued
        if num_continued:
            break
    assert num_continued > 0


@pytest.mark.faults
def test_answers_go_on_without_the_controller_and_replicas_come_again(
    endpoint: Endpoint, expected: Undisturbed
) -> None:
    SHARED.spend()
    (controller,) = ours("ray::ServeController")
    found = stream_all(endpoint, NUM_STREAMS, expected.num_tokens, controller.kill)
    assert [stream.text for stream in found] == [stream.text for stream in expected.streams]
    assert whole(found, expected.num_tokens) == NUM_STREAMS
    # The new controller knows what there should be.
    until(lambda: [p.pid for p in ours("ray::ServeController")] not in ([], [controller.pid]))
    seen = lose(endpoint, "kill -9", "haproxy", expected, replicas("engine-tiny")[0])
    assert (seen.num_errors, seen.num_incomplete) == (0, 0)


@pytest.mark.faults
def test_a_killed_gateway_cuts_its_streams_visibly_and_no_others(
    endpoint: Endpoint, expected: Undisturbed
) -> None:
    (victim, *_), num = replicas("gateway"), expected.num_tokens
    found = stream_all(endpoint, NUM_STREAMS, num, victim.kill)
    assert 0 < whole(found, num) < NUM_STREAMS
    assert cut(found) == NUM_STREAMS - whole(found, num)
    until(lambda: whole(stream_all(endpoint, 2, 9), 9) == 2)


@pytest.mark.faults
def test_a_killed_proxy_cuts_its_streams_visibly_and_comes_again(
    endpoint: Endpoint, expected: Undisturbed
) -> None:
    SHARED.spend()
    (victim, *others), num = ours("bin/haproxy"), expected.num_tokens
    for proxy in others:
        proxy.kill()
    found = stream_all(endpoint, NUM_STREAMS, num, victim.kill)
    assert cut(found) == NUM_STREAMS - whole(found, num)
    until(lambda: whole(stream_all(endpoint, 2, 9), 9) == 2)


def whole(streams: Sequence[Stream], num_tokens: int) -> int:
    """Streams that ended as they should."""
    ends = [(stream.error, stream.finish_reason, stream.num_tokens) for stream in streams]
    return ends.count((None, "length", num_tokens))


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
