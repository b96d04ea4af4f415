"""Which status of a batch follows which."""

from __future__ import annotations

from typing import get_args

import pytest

from raylm.serve.batches.status import CANCELLABLE, FINAL, Event, State, Status, shown

PATHS = {
    "completed": ["accepted", "answered", "stored"],
    "failed": ["refused"],
    "cancelled": ["accepted", "cancel", "stored"],
    "expired": ["accepted", "late"],
}


@pytest.mark.parametrize("end", PATHS)
def test_every_end_is_reached_and_the_way_is_dated(end):
    state = State()
    for second, event in enumerate(PATHS[end]):
        assert not state.is_final
        state = state.after(event, float(second))
    assert state.status == end and state.is_final
    assert list(state.since.values()) == [float(i) for i in range(len(PATHS[end]))]


def test_a_batch_that_has_not_begun_can_be_cancelled_and_can_be_late():
    assert State().after("late", 1.0).status == "expired"
    assert State().after("cancel", 1.0).after("stored", 2.0).status == "cancelled"


@pytest.mark.parametrize("status", get_args(Status))
def test_nothing_follows_an_end_and_only_what_is_allowed_follows_the_rest(status):
    allowed = {
        "validating": {"accepted", "refused", "cancel", "late"},
        "in_progress": {"answered", "cancel", "late"},
        "finalizing": {"stored"},
        "cancelling": {"stored"},
    }
    for event in get_args(Event):
        if event in allowed.get(status, ()):
            assert State(status).after(event, 0.0).status != status
        else:
            with pytest.raises(KeyError):
                State(status).after(event, 0.0)
    assert (status in FINAL) == (status not in allowed)


@pytest.mark.parametrize("status", get_args(Status))
def test_a_wish_to_cancel_shows_at_once_unless_it_is_too_late(status):
    state = shown(State(status), 7.0)
    assert state.status == ("cancelling" if status in CANCELLABLE else status)
    assert state.since.get("cancelling") == (7.0 if status in CANCELLABLE else None)
    assert shown(State(status), None).status == status
