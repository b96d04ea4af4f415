"""Batches by the official client, answered by an executor that shares a folder with the gateway."""

from __future__ import annotations

import time

import openai
import pytest

from raylm.config.serve import BatchesConfig, LimitsConfig
from raylm.engine.protocol import Request, Sampling
from raylm.serve.batches import jobs as jobs_module
from raylm.serve.batches.ask import Retry
from raylm.serve.batches.jobs import Jobs
from raylm.serve.batches.replica import BATCH_PRIORITY
from tests.serve.batches.conftest import DEADLINE_S, chat_line, line
from tests.serve.conftest import KEY
from tests.serve.fake_encoder import FakeEncoder
from tests.serve.in_process import a_key, key_of

OTHER = "sk-other-0123456789abcdef"


def test_every_line_is_answered_as_over_http(api_of):
    api = api_of()
    asked = [chat_line(f"c{i}", seed=i) for i in range(20)]
    bad = chat_line("bad", max_tokens=10**6)
    unknown = chat_line("unknown", model="other")
    with api.executing():
        batch_id = api.start("".join([*asked, bad, unknown]), metadata={"who": "me"})
        batch = api.wait(batch_id, "completed")
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (22, 20, 2)
    assert batch.metadata == {"who": "me"}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.expires_at - batch.created_at == 86_400

    answers = {found["custom_id"]: found for found in api.lines_of(batch.output_file_id)}
    assert set(answers) == {f"c{i}" for i in range(20)}
    client = api.client()
    for i in range(20):
        response = answers[f"c{i}"]["response"]
        expected = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "fox"}], max_tokens=3, seed=i
        )
        assert response["status_code"] == 200 and answers[f"c{i}"]["error"] is None
        assert response["body"]["choices"][0] == expected.to_dict()["choices"][0]
    usage = [found["response"]["body"]["usage"] for found in answers.values()]
    assert batch.usage.input_tokens == sum(u["prompt_tokens"] for u in usage)
    assert batch.usage.output_tokens == sum(u["completion_tokens"] for u in usage) == 60

    failed = {found["custom_id"]: found["response"] for found in api.lines_of(batch.error_file_id)}
    assert failed["bad"]["status_code"] == 400
    assert failed["bad"]["body"]["error"]["param"] == "max_tokens"
    assert failed["unknown"]["status_code"] == 404
    outputs = client.files.list(purpose="batch_output")
    assert {file.id for file in outputs} == {batch.output_file_id, batch.error_file_id}


def test_completions_and_classes_are_answered_too(api_of):
    api = api_of()
    body = {"model": "tiny", "prompt": "the quick", "max_tokens": 2}
    with api.executing():
        done = api.start(line("a", "/v1/completions", body), "/v1/completions")
        batch = api.wait(done, "completed")
        (answer,) = api.lines_of(batch.output_file_id)
        assert answer["response"]["body"]["object"] == "text_completion"
        # This engine makes no vectors: an error of the line, as over HTTP.
        embed = line("a", "/v1/embeddings", {"model": "tiny", "input": "fox"})
        batch = api.wait(api.start(embed, "/v1/embeddings"), "completed")
        assert batch.output_file_id is None and batch.request_counts.failed == 1
        (failed,) = api.lines_of(batch.error_file_id)
        assert failed["response"]["status_code"] == 400


def test_a_bad_input_fails_as_a_whole_with_every_bad_line(api_of):
    api = api_of()
    with api.executing():
        batch = api.wait(api.start(chat_line("a") + "{\n" + chat_line("a")), "failed")
    assert [(e.line, e.code) for e in batch.errors.data] == [
        (2, "invalid_json_line"), (3, "duplicate_custom_id"),
    ]  # fmt: skip
    assert batch.output_file_id is None and batch.failed_at >= batch.created_at
    assert api.engine.seen == []


def test_an_executor_that_is_killed_is_followed_by_one_that_answers_the_rest(api_of):
    api = api_of(BatchesConfig(max_concurrency=4), step_s=0.02)
    total = 120
    with api.executing():
        batch_id = api.start("".join(chat_line(f"c{i}") for i in range(total)))
        api.wait_answers(batch_id, 20)
    first = len(api.engine.seen)
    assert api.client().batches.retrieve(batch_id).status == "in_progress"
    assert api.client().batches.retrieve(batch_id).output_file_id is None
    with api.executing():
        batch = api.wait(batch_id, "completed")
    ids = [found["custom_id"] for found in api.lines_of(batch.output_file_id)]
    assert sorted(ids) == sorted(f"c{i}" for i in range(total))
    assert batch.request_counts.completed == total
    # What was on the disk was not asked again.
    assert len(api.engine.seen) - first <= total - 20


def test_tighter_limits_after_a_restart_end_lines_and_not_the_batch(api_of):
    api = api_of(BatchesConfig(max_concurrency=1), step_s=0.05)
    lines = [chat_line(f"c{i}", user="x" * 1100) for i in range(30)]
    with api.executing():
        batch_id = api.start("".join(lines))
        api.wait_answers(batch_id, 1)
    api.gateway.limits = LimitsConfig(max_body_bytes=1024)
    with api.executing():
        batch = api.wait(batch_id, "completed")
    failed = api.lines_of(batch.error_file_id)
    assert {found["response"]["status_code"] for found in failed} == {413}
    assert batch.request_counts.completed + len(failed) == 30


def test_cancelling_ends_soon_and_keeps_what_was_done(api_of):
    api = api_of(BatchesConfig(max_concurrency=2), step_s=0.02)
    with api.executing():
        batch_id = api.start("".join(chat_line(f"c{i}") for i in range(500)))
        api.wait_answers(batch_id, 5)
        cancelled = api.client().batches.cancel(batch_id)
        assert cancelled.status == "cancelling" and cancelled.cancelling_at
        batch = api.wait(batch_id, "cancelled")
    answers = api.lines_of(batch.output_file_id)
    assert 5 <= len(answers) == batch.request_counts.completed < 500
    assert api.engine.running == {}
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        api.client().batches.cancel(batch_id)


def test_a_batch_is_cancelled_before_anybody_works_on_it(api_of):
    api = api_of()
    batch_id = api.start(chat_line("a"))
    assert api.client().batches.cancel(batch_id).status == "cancelling"
    assert api.client().batches.cancel(batch_id).status == "cancelling"
    with api.executing():
        batch = api.wait(batch_id, "cancelled")
    assert batch.request_counts.total == 0 and api.engine.seen == []


def test_what_is_not_answered_in_its_window_expires(api_of, monkeypatch):
    api = api_of(BatchesConfig(max_concurrency=1), step_s=0.1)
    monkeypatch.setattr(jobs_module, "WINDOW_S", 2.0)
    with api.executing():
        batch = api.wait(api.start("".join(chat_line(f"c{i}") for i in range(100))), "expired")
    answers, missed = api.lines_of(batch.output_file_id), api.lines_of(batch.error_file_id)
    assert len(answers) + len(missed) == 100 and answers and missed
    assert {found["error"]["code"] for found in missed} == {"batch_expired"}
    assert batch.expired_at and batch.request_counts.failed == len(missed)


def test_a_broken_engine_is_asked_again_and_then_given_up(api_of):
    api = api_of(fail_at=1)
    with api.executing():
        batch = api.wait(api.start(chat_line("a")), "completed")
    (failed,) = api.lines_of(batch.error_file_id)
    assert failed["response"]["status_code"] == 500
    assert len(api.engine.seen) == 3


def test_a_full_engine_is_asked_again_until_it_has_room(api_of):
    api = api_of(max_running=1, step_s=0.001)
    with api.executing(retry=Retry(max_failures=1, first_s=0.001, longest_s=0.01)):
        batch = api.wait(api.start("".join(chat_line(f"c{i}") for i in range(12))), "completed")
    assert batch.request_counts.completed == 12


def test_the_input_may_be_deleted_meanwhile(api_of):
    api = api_of()
    batch_id = api.start(chat_line("a"))
    client = api.client()
    client.files.delete(client.batches.retrieve(batch_id).input_file_id)
    with api.executing():
        assert api.wait(batch_id, "completed").request_counts.completed == 1


def test_batches_are_listed_newest_first_page_by_page_and_each_keys_alone(api_of):
    api = api_of(keys=(KEY, OTHER))
    client = api.client(KEY)
    file_id = api.upload(chat_line("a"), KEY)
    made = [
        client.batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        ).id
        for _ in range(5)
    ]
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == made[:2:-1] and page.has_more
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    assert [batch.id for batch in client.batches.list(after=made[1])] == made[:1]
    other = api.client(OTHER)
    assert list(other.batches.list()) == []
    for ask in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask(made[0])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"completion_window": "1h"}, "completion_window"),
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"input_file_id": "file-" + "0" * 32}, "input_file_id"),
        ({"input_file_id": "../x"}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, None),
        ({"priority": 1}, "priority"),
    ],
)
def test_what_is_asked_for_is_read_strictly(api_of, change, param):
    api = api_of()
    body = {
        "input_file_id": api.upload("{}"),
        "endpoint": "/v1/completions",
        "completion_window": "24h",
    }
    response = api.http.post("/v1/batches", json=body | change)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == (param or "output_expires_after.seconds")


def test_too_many_unfinished_batches_are_refused(api_of):
    api = api_of(BatchesConfig(max_batches=1))
    api.start(chat_line("a"))
    with pytest.raises(openai.RateLimitError):
        api.start(chat_line("a"))


def test_outputs_expire_as_asked_and_are_not_inputs(api_of):
    api = api_of()
    with api.executing():
        keep = {"anchor": "created_at", "seconds": 7200}
        batch = api.wait(api.start(chat_line("a"), output_expires_after=keep), "completed")
    client = api.client()
    output = client.files.retrieve(batch.output_file_id)
    assert output.expires_at - output.created_at == 7200
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(
            input_file_id=output.id, endpoint="/v1/chat/completions", completion_window="24h"
        )


def test_ended_batches_are_forgotten_when_their_time_is_over(api_of):
    api = api_of()
    with api.executing():
        done = api.start(chat_line("a"))
        api.wait(done, "completed")
    waiting = api.start(chat_line("a"))
    jobs = Jobs(api.root / "everyone")
    jobs.sweep(time.time())
    assert len(jobs.all()) == 2
    jobs.sweep(time.time() + 31 * 86_400)
    assert [job.order.id for job in jobs.all()] == [waiting]


def test_one_executor_works_at_a_time(api_of):
    api = api_of()
    with api.executing(), api.executing():
        batch = api.wait(api.start("".join(chat_line(f"c{i}") for i in range(30))), "completed")
    assert batch.request_counts.completed == len(api.engine.seen) == 30


def test_answers_of_batches_are_made_below_all_others(api_of):
    api = api_of()
    api.gateway.priority = BATCH_PRIORITY
    with api.executing():
        api.wait(api.start(chat_line("a")), "completed")
    assert [request.priority for request in api.engine.seen] == [BATCH_PRIORITY]
    assert Request("any", (1,), Sampling(1)).priority > BATCH_PRIORITY


def test_a_line_may_go_behind_other_batches_whatever_its_key_allows(api_of):
    api = api_of(keys=(a_key("a", max_priority=-100),))
    api.gateway.priority = BATCH_PRIORITY
    lines = chat_line("a") + chat_line("b", priority=-3)
    with api.executing():
        batch = api.wait(api.start(lines, key=key_of("a")), "completed", key=key_of("a"))
    assert batch.request_counts.completed == 2
    assert {request.priority for request in api.engine.seen} == {-1000, -1003}


def test_lines_are_answered_in_the_name_of_the_key_that_made_the_batch(api_of):
    api = api_of(keys=(a_key("a"), a_key("b"), a_key("none", models=("other",))))
    with api.executing():
        for name in ("a", "b"):
            key = key_of(name)
            api.wait(api.start(chat_line("x"), key=key), "completed", key=key)
        key = key_of("none")
        batch = api.wait(api.start(chat_line("x"), key=key), "completed", key=key)
    assert [(r.tenant, r.cache_salt) for r in api.engine.seen] == [("a", "id-a"), ("b", "id-b")]
    (failed,) = api.lines_of(batch.error_file_id, key)
    assert failed["response"]["body"]["error"]["code"] == "model_not_found"
    assert {path.name for path in api.root.iterdir()} == {
        "executor.lock", "id-a", "id-b", "id-none",
    }  # fmt: skip


def test_texts_count_in_the_name_of_the_key_too(api_of):
    api = api_of(keys=(a_key("a"),), engine_of=FakeEncoder)
    text = line("x", "/v1/embeddings", {"model": "tiny", "input": "fox"})
    with api.executing():
        made = api.start(text, "/v1/embeddings", key=key_of("a"))
        api.wait(made, "completed", key=key_of("a"))
    assert [found.tenant for found in api.engine.texts] == ["a"]


def test_a_key_at_its_limits_waits_and_holds_up_no_other(api_of):
    keys = (a_key("a", limits={"requests_per_minute": 2}), a_key("b"))
    api = api_of(BatchesConfig(max_concurrency=1), keys=keys)
    a, b = key_of("a"), key_of("b")
    with api.executing():
        limited = api.start("".join(chat_line(f"c{i}") for i in range(9)), key=a)
        deadline = time.monotonic() + DEADLINE_S
        while len(api.engine.seen) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        other = api.start("".join(chat_line(f"c{i}") for i in range(5)), key=b)
        assert api.wait(other, "completed", key=b).request_counts.completed == 5
        counts = api.wait(limited, "in_progress", key=a).request_counts
    assert counts.completed < 9 and counts.failed == 0


def test_texts_are_embedded_and_classified_below_all_others(api_of):
    api = api_of(engine_of=FakeEncoder)
    api.gateway.priority = BATCH_PRIORITY
    texts = {"model": "tiny", "input": ["fox", "dog"]}
    with api.executing():
        for url in ("/v1/embeddings", "/v1/classify"):
            batch = api.wait(api.start(line("a", url, texts), url), "completed")
            (answer,) = api.lines_of(batch.output_file_id)
            assert [found["index"] for found in answer["response"]["body"]["data"]] == [0, 1]
            assert batch.usage.input_tokens == answer["response"]["body"]["usage"]["total_tokens"]
    assert {text.priority for text in api.engine.texts} == {BATCH_PRIORITY}


def test_lines_are_held_to_the_limits_of_requests(api_of):
    api = api_of(limits=LimitsConfig(max_body_bytes=1024))
    with api.executing():
        batch = api.wait(api.start(chat_line("a", user="x" * 1100)), "failed")
    assert [error.code for error in batch.errors.data] == ["line_too_long"]


def test_without_batches_there_are_no_such_routes(serve_here):
    client = serve_here().client
    assert client.get("/v1/batches").status_code == 404
    assert client.post("/v1/files").status_code == 404
