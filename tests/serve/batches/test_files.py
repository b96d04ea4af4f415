"""Files over HTTP, by the official client and by clients that mean no good."""

from __future__ import annotations

import stat
import time

import openai
import pytest

from raylm.config.serve import BatchesConfig
from raylm.serve.batches.files import ABANDONED_S, Files, record_of
from tests.serve.conftest import KEY

OTHER = "sk-other-0123456789abcdef"
PART = '--b\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
FILE = PART.format("file", '; filename="x"', "{}")
PURPOSE = PART.format("purpose", "", "batch")


def test_a_file_is_uploaded_listed_read_and_deleted(api_of):
    client = api_of().client()
    text = ("x" * 999 + "\n") * 3000
    made = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(text), "in.jsonl", "batch", "processed",
    )  # fmt: skip
    assert made.expires_at - made.created_at == 30 * 86_400
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).text == text
    other = client.files.create(
        file=("two.jsonl", b"{}"),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert other.expires_at - other.created_at == 3600
    assert [file.id for file in client.files.list()] == [other.id, made.id]
    assert [file.id for file in client.files.list(limit=1)] == [other.id, made.id]
    assert list(client.files.list(purpose="batch_output")) == []
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)
    assert [file.id for file in client.files.list()] == [other.id]


def test_what_is_stored_is_private(api_of):
    api = api_of()
    api.upload("{}\n")
    for path in [api.root, *api.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_nobody_sees_another_keys_files(api_of):
    api = api_of(keys=(KEY, OTHER))
    mine = api.upload("{}\n", KEY)
    other = api.client(OTHER)
    assert list(other.files.list()) == []
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(mine)
    with pytest.raises(openai.BadRequestError, match="there is no file"):
        other.batches.create(
            input_file_id=mine, endpoint="/v1/completions", completion_window="24h"
        )
    assert api.client(KEY).files.retrieve(mine).id == mine


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e%2f%2e%2e", "file-" + "0" * 32, "file-" + "0" * 31 + "/", "file-\u0661"]
)
def test_ids_that_are_not_ours_are_no_paths(api_of, name):
    assert api_of().http.get(f"/v1/files/{name}/content").status_code == 404


def test_too_large_a_file_is_refused_and_leaves_nothing(api_of):
    api = api_of(BatchesConfig(max_file_bytes=1024))
    api.upload("x" * 1024)
    for size in (1025, 200_000):
        with pytest.raises(openai.APIStatusError) as caught:
            api.upload("x" * size)
        assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
    assert len(list(api.root.rglob("*.jsonl"))) == 1


def test_a_lie_about_the_length_does_not_help(api_of):
    api = api_of(BatchesConfig(max_file_bytes=1024))

    def parts():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 1000

    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = api.http.post("/v1/files", content=parts(), headers=headers)
    assert response.status_code == 413
    assert list(api.root.rglob("*.jsonl")) == []


def test_too_slow_a_client_is_refused_and_leaves_nothing(api_of):
    api = api_of(BatchesConfig(upload_timeout_s=0.05))

    def parts():
        yield FILE.encode()
        time.sleep(0.2)
        yield (PURPOSE + "--b--").encode()

    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = api.http.post("/v1/files", content=parts(), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (408, "body_timeout")
    assert list(api.root.rglob("*.jsonl")) == []


def test_a_disk_that_takes_nothing_is_told_without_its_path(api_of):
    api = api_of()
    api.root.parent.write_text("in the way")
    with pytest.raises(openai.APIStatusError) as caught:
        api.upload("{}")
    assert (caught.value.status_code, caught.value.code) == (507, "storage_failed")
    assert str(api.root.parent) not in caught.value.message


def test_there_is_a_most_of_files(api_of):
    api = api_of(BatchesConfig(max_files=2))
    first = [api.upload("{}"), api.upload("{}")][0]
    with pytest.raises(openai.RateLimitError):
        api.upload("{}")
    api.client().files.delete(first)
    api.upload("{}")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (FILE + PURPOSE + "--b--", None),
        (FILE + PURPOSE, "invalid_form"),
        (PURPOSE + "--b--", "invalid_form"),
        (FILE + FILE + PURPOSE + "--b--", "invalid_form"),
        (FILE.replace('"file"', '"data"') + PURPOSE + "--b--", "invalid_form"),
        (PURPOSE + PURPOSE + FILE + "--b--", "invalid_form"),
        (PART.format("purpose", "", "x" * 2000) + FILE + "--b--", "invalid_form"),
        ("nothing of the kind", "invalid_form"),
        ("", "invalid_form"),
        (FILE + "--b--", "missing_parameter"),
        (FILE + PURPOSE.replace("batch", "fine-tune") + "--b--", "invalid_parameter"),
        (FILE + PURPOSE + PART.format("extra", "", "1") + "--b--", "unknown_parameter"),
        (
            FILE + PURPOSE + PART.format("expires_after[seconds]", "", "7200") + "--b--",
            "missing_parameter",
        ),
        (
            FILE
            + PURPOSE
            + PART.format("expires_after[anchor]", "", "created_at")
            + PART.format("expires_after[seconds]", "", "7")
            + "--b--",
            "invalid_parameter",
        ),
    ],
)
def test_forms_are_read_strictly(api_of, body, code):
    api = api_of()
    headers = {"content-type": "multipart/form-data; boundary=b"}
    response = api.http.post("/v1/files", content=body.encode(), headers=headers)
    found = response.json().get("error", {}).get("code")
    assert (response.status_code, found) == (200 if code is None else 400, code)
    assert len(list(api.root.rglob("*.jsonl"))) == (code is None)


def test_what_is_no_form_is_refused(api_of):
    response = api_of().http.post("/v1/files", json={})
    assert response.json()["error"]["code"] == "unsupported_content_type"
    headers = {"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"}
    assert api_of().http.post("/v1/files", content=b"", headers=headers).status_code == 415


def test_a_file_is_gone_when_its_time_is_over_and_swept_away_later(tmp_path):
    files, now_s = Files(tmp_path), time.time()
    kept = {}
    for file_id, keep in (("file-" + "a" * 32, 10.0), ("file-" + "b" * 32, 1000.0)):
        with open(files.create(file_id), "w") as file:
            file.write("{}")
        kept[keep] = record_of(files, file_id, "x", "batch", keep)
        files.publish(kept[keep])
    assert files.find(kept[10.0].id, now_s + 5) == kept[10.0]
    assert files.find(kept[10.0].id, now_s + 100) is None
    assert [record.id for record in files.all(now_s + 100)] == [kept[1000.0].id]
    files.sweep(now_s + 100, ())
    assert [path.stem for path in files.folder.glob("*.jsonl")] == [kept[1000.0].id]


def test_what_was_given_up_is_swept_away_but_not_what_a_batch_still_writes(tmp_path):
    files = Files(tmp_path)
    ids = ["file-" + letter * 32 for letter in "ab"]
    for file_id in ids:
        open(files.create(file_id), "w").close()
    files.sweep(time.time(), ())
    assert files.count() == 2
    files.sweep(time.time() + ABANDONED_S + 10, {ids[0]})
    assert [path.stem for path in files.folder.glob("*")] == ids[:1]
