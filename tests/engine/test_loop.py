import asyncio
import threading
import time

import pytest

from raylm.engine.answer import Answer
from raylm.engine.loop import StepLoop
from raylm.engine.protocol import Capabilities, Request, Sampling
from raylm.engine.runner import StepResult, deadline_error
from raylm.engine.sampler import Sampled
from raylm.errors import RaylmError, RequestError

CAPABILITIES = Capabilities("fake", 1000, 400, ())


class FakeRunner:
    """Gives every answer token 40 in each step; `gate` lets one step through per release."""

    num_blocks = num_free_blocks = num_queried_tokens = num_found_tokens = 0
    num_guessed_tokens = num_confirmed_tokens = 0

    def __init__(self, gated=False, error=None):
        self.answers, self.order = {}, []
        self.gate = threading.Semaphore(0) if gated else None
        self.error = error
        self.closed = False
        self.num_steps = 0

    num_waiting = 0
    num_running = property(lambda self: len(self.answers))

    def add(self, answer):
        self.answers[answer.id] = answer
        self.order.append(answer.id)

    def cancel(self, request_id):
        del self.answers[request_id]

    def step(self, now_s):
        if self.gate is not None:
            self.gate.acquire(timeout=5)
        self.num_steps += 1
        if self.error is not None:
            raise self.error
        chunks = [answer.take(Sampled(40)) for answer in self.answers.values()]
        for chunk in chunks:
            if chunk.finish_reason:
                del self.answers[chunk.request_id]
        return StepResult(chunks)

    def abandon(self):
        lost = list(self.answers)
        self.answers.clear()
        return lost

    def close(self):
        self.closed = True


@pytest.fixture
def answer(tokenizer):
    def answer(name, max_tokens=3):
        request = Request(name, (5, 6), Sampling(max_tokens=max_tokens))
        return Answer(request, tokenizer, CAPABILITIES)

    return answer


@pytest.fixture
def start():
    loops = []

    def start(runner, max_batch_size=4, max_waiting=4, step_timeout_s=30.0):
        loops.append(
            StepLoop(
                runner,
                max_batch_size=max_batch_size,
                max_waiting=max_waiting,
                step_timeout_s=step_timeout_s,
            )
        )
        return loops[-1]

    yield start
    for made in loops:
        if made._runner.gate is not None:
            made._runner.gate.release(1000)
        made.close()


async def drain(ticket):
    items = []
    while not items or not (isinstance(items[-1], RaylmError) or items[-1].finish_reason):
        items.append(await asyncio.wait_for(ticket.queue.get(), 5))
    return items


def test_chunks_reach_the_event_loop_in_order(start, answer):
    steps = start(FakeRunner())

    async def ask():
        return await drain(steps.submit(answer("a")))

    assert [chunk.position for chunk in asyncio.run(ask())] == [0, 1, 2]
    stats = steps.stats()
    assert (stats.prompt_tokens_total, stats.generated_tokens_total) == (2, 3)


def test_a_cancelled_answer_gets_no_further_step(start, answer):
    runner = FakeRunner(gated=True)
    steps = start(runner)

    async def ask():
        ticket = steps.submit(answer("a", 100))
        runner.gate.release()
        await asyncio.wait_for(ticket.queue.get(), 5)
        steps.cancel("a")  # one step may be waiting at the gate already
        runner.gate.release()
        return await drain(ticket)

    items = asyncio.run(ask())
    assert items[-1].finish_reason == "cancelled"
    assert runner.num_steps <= 2 and not runner.answers
    assert steps.stats().cancelled_total == 1


def test_one_id_cannot_be_answered_twice_at_once(start, answer):
    runner = FakeRunner(gated=True)
    steps = start(runner)

    async def ask():
        steps.submit(answer("a"))
        with pytest.raises(RequestError) as error:
            steps.submit(answer("a"))
        return error.value.code

    assert asyncio.run(ask()) == "duplicate_id"


def test_the_queue_is_bounded_and_says_when_to_come_again(start, answer):
    runner = FakeRunner(gated=True)
    steps = start(runner, max_batch_size=2, max_waiting=3)

    async def ask():
        taken = 0
        with pytest.raises(RequestError) as error:
            for index in range(10):
                steps.submit(answer(str(index)))
                taken += 1
        return taken, error.value

    taken, error = asyncio.run(ask())
    assert 5 <= taken <= 7  # the thread may have taken some in already, which then run
    assert (error.status, error.code, error.retry_after_s) == (503, "overloaded", 1.0)


def test_a_failed_step_ends_its_answers_with_the_reason(start, answer):
    runner = FakeRunner(error=ValueError("no such tensor"))
    steps = start(runner)

    async def ask():
        return await asyncio.gather(*(drain(steps.submit(answer(name))) for name in "ab"))

    for items in asyncio.run(ask()):
        assert items[0].code == "engine-step-failed" and "no such tensor" in items[0].message
    if runner.num_steps < 3:
        steps.health()


def test_three_failed_steps_in_a_row_are_fatal(start, answer):
    runner = FakeRunner(error=ValueError("broken"))
    steps = start(runner)

    async def ask(name):
        return await drain(steps.submit(answer(name)))

    for name in "abc":
        asyncio.run(ask(name))
    steps._thread.join(5)
    with pytest.raises(RaylmError, match="3 steps in a row") as error:
        steps.health()
    assert error.value.code == "engine-failed"
    with pytest.raises(RaylmError):
        asyncio.run(ask("d"))
    assert runner.closed


def test_a_runner_that_knows_it_is_at_its_end_needs_no_three_steps(start, answer):
    steps = start(FakeRunner(error=RaylmError("its process is gone", code="engine-failed")))

    async def ask():
        return await drain(steps.submit(answer("a")))

    asyncio.run(ask())
    steps._thread.join(5)
    with pytest.raises(RaylmError, match="process is gone") as error:
        steps.health()
    assert error.value.code == "engine-failed"


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (RaylmError("not finite", code="non-finite-logits"), True),
        (deadline_error("x"), False),  # the client's business, not the engine's
    ],
)
def test_an_engine_of_which_every_row_fails_is_broken(start, answer, error, fatal):
    runner = FakeRunner()
    runner.step = lambda now_s: StepResult(failed=[(runner.answers.popitem()[0], error)])
    steps = start(runner)

    async def ask(name):
        return await drain(steps.submit(answer(name)))

    for name in "abc":
        assert asyncio.run(ask(name))[0].code == error.code
    if not fatal:
        steps.health()
        return
    steps._thread.join(5)
    with pytest.raises(RaylmError, match="3 steps in a row failed, the last with: not finite"):
        steps.health()


def test_a_token_in_between_tells_that_the_engine_works(start, answer):
    runner = FakeRunner()
    steps = start(runner)

    async def ask(name):
        return (await drain(steps.submit(answer(name))))[-1]

    for name in "abcd":
        runner.error = ValueError("broken")
        assert asyncio.run(ask(name)).code == "engine-step-failed"
        runner.error = None
        assert asyncio.run(ask(name)).finish_reason == "length"
    steps.health()


def test_a_failure_outside_the_steps_is_fatal_and_reported_to_all(start, answer):
    runner = FakeRunner(gated=True)
    runner.abandon = lambda: 1 / 0
    runner.error = ValueError("broken")
    steps = start(runner)

    async def ask():
        ticket = steps.submit(answer("a"))
        runner.gate.release()
        return await drain(ticket)

    assert asyncio.run(ask())[0].code == "engine-failed"


def test_a_step_that_hangs_ends_its_requests_and_makes_the_engine_unhealthy(start, answer):
    runner = FakeRunner(gated=True)
    steps = start(runner, step_timeout_s=0.05)

    async def ask():
        tickets = [steps.submit(answer(name, 50)) for name in "ab"]
        items = [await drain(ticket) for ticket in tickets]  # the step still hangs
        with pytest.raises(RaylmError) as error:
            steps.health()
        with pytest.raises(RaylmError):
            steps.submit(answer("c"))
        return items, error.value.code

    items, code = asyncio.run(ask())
    assert [[item.code for item in found] for found in items] == [["engine-stalled"]] * 2
    assert code == "engine-stalled"
    runner.gate.release()
    wait_until_healthy(steps)
    wait_until(lambda: not runner.answers)  # they are not answered to nobody
    assert steps.stats().cancelled_total == 2 and runner.num_steps == 1

    async def again():
        ticket = steps.submit(answer("a", 1))
        runner.gate.release()
        return await drain(ticket)

    assert asyncio.run(again())[-1].finish_reason == "length"


def test_a_search_for_the_culprit_is_no_failure_of_the_engine(start, answer):
    runner = FakeRunner(error=ValueError("broken"))
    searches = iter([None] * 6)

    def abandon():
        try:
            return next(searches)
        except StopIteration:
            del runner.answers["a"]
            runner.error = None
            return ["a"]

    runner.abandon = abandon
    steps = start(runner)

    async def ask():
        return await asyncio.gather(*(drain(steps.submit(answer(name))) for name in "ab"))

    (error,), whole = asyncio.run(ask())
    assert error.code == "engine-step-failed"
    assert [chunk.position for chunk in whole] == [0, 1, 2]
    assert runner.num_steps == 10
    steps.health()


def test_an_event_loop_that_is_gone_cancels_its_answers(start, answer):
    runner = FakeRunner(gated=True)
    steps = start(runner)

    async def leave():
        steps.submit(answer("a", 1000))

    asyncio.run(leave())
    runner.gate.release(3)
    wait_until(lambda: not runner.answers)


def test_closing_ends_what_runs_as_cancelled(start, answer):
    runner = FakeRunner(gated=True)
    steps = start(runner)

    async def ask():
        ticket = steps.submit(answer("a", 1000))
        closing = threading.Thread(target=steps.close)
        closing.start()
        runner.gate.release(2)
        return await drain(ticket)

    assert asyncio.run(ask())[-1].finish_reason == "cancelled"
    steps._thread.join(5)
    assert runner.closed


def wait_until_healthy(steps):
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            return steps.health()
        except RaylmError:
            time.sleep(0.01)
    steps.health()


def wait_until(condition):
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
