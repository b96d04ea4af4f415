from raylm.engine.runner import StepResult, deadline_error
from raylm.errors import RequestError


def test_a_missed_deadline_is_a_504():
    error = deadline_error("a")
    assert isinstance(error, RequestError)
    assert (error.status, error.code) == (504, "deadline_exceeded")


def test_results_share_nothing():
    first, second = StepResult(), StepResult()
    first.chunks.append(None)
    assert second.chunks == [] and second.failed == []
