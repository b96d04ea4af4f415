import pytest

from raylm.engine.protocol import Chunk
from raylm.engine.runner import StepResult, deadline_error, step_error, taken
from raylm.engine.sampler import Sampled
from raylm.errors import RaylmError, RequestError


class Answer:
    id = "a"

    def take(self, sampled):
        if sampled.token_id == 13:
            raise KeyError("no such piece")
        return Chunk("a", 0, (sampled.token_id,))


def test_a_missed_deadline_is_a_504():
    error = deadline_error("a")
    assert isinstance(error, RequestError)
    assert (error.status, error.code) == (504, "deadline_exceeded")


def test_results_share_nothing():
    first, second = StepResult(), StepResult()
    first.chunks.append(None)
    assert second.chunks == [] and second.failed == []


def test_a_token_becomes_a_chunk_or_an_error_of_that_answer():
    assert taken(Answer(), Sampled(5)) == Chunk("a", 0, (5,))
    error = RaylmError("not finite", code="non-finite-logits")
    assert taken(Answer(), error) is error
    broken = taken(Answer(), Sampled(13))
    assert isinstance(broken, RaylmError) and broken.code == "engine-step-failed"


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("x"), "engine-step-failed"), (RaylmError("x", code="no-memory"), "no-memory")],
)
def test_a_failed_step_keeps_the_code_of_its_cause(error, code):
    assert step_error(error).code == code
    assert step_error(error).message == "the engine's step failed: x"
