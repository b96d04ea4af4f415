"""Who is chosen, and who is out."""

from __future__ import annotations

from itertools import chain

import pytest

from raylm.serve.rotation import OUT_S, Leg, Rotation, Standing, rank_replicas


@pytest.mark.parametrize(
    ("avoid", "out", "ranks"),
    [
        ((), (), [["a", "b", "c"]]),
        (("b",), (), [["a", "c"], ["b"]]),
        (("a", "b", "c"), (), [["a", "b", "c"]]),
        ((), ("a",), [["b", "c"]]),
        (("b",), ("a",), [["c"], ["b"]]),
        (("x",), ("a", "b", "c"), []),
    ],
)
def test_replicas_are_ranked(
    avoid: tuple[str, ...], out: tuple[str, ...], ranks: list[list[str]]
) -> None:
    replicas = [Standing(name, 11.0 if name in out else 0.0) for name in "abc"]
    assert rank_replicas(avoid, replicas, now_s=10.0) == ranks
    assert sorted(chain(*rank_replicas(avoid, replicas, now_s=11.0))) == ["a", "b", "c"]


def test_a_lost_replica_is_out_for_a_time_or_until_it_is_heard() -> None:
    rotation = Rotation()
    rotation.lose("a", 100.0)
    rotation.lose("b", 100.0)
    assert rotation.standing("a").out_until_s == 100.0 + OUT_S
    rotation.heard("a")
    rotation.heard(None)
    assert rotation.standing("a").out_until_s == 0.0
    assert rotation.standing("b").out_until_s == 100.0 + OUT_S
    assert rotation.standing("c").out_until_s == 0.0


def test_a_leg_tells_whether_silence_means_something() -> None:
    said: list[str] = []
    leg = Leg(on_wait=lambda: said.append("wait"), on_sent=lambda: said.append("sent"))
    leg.wait()
    leg.sent("a")
    assert leg.replica == "a"
    leg.wait()  # refused, full: back in the queue
    assert leg.replica is None and said == ["wait", "sent", "wait"]
