"""`raylm chat` against a small endpoint that speaks OpenAI's API as the gateway does."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raylm.deploy.status import write_endpoint
from raylm.store import Store


class Endpoint(BaseHTTPRequestHandler):
    has_template = True
    seen: list[dict[str, object]] = []  # noqa: RUF012

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, **body})
        if self.path.endswith("chat/completions"):
            if not self.has_template:
                error = {"message": "no template", "type": "x", "code": "no_chat_template"}
                self.answer(400, {"error": error})
                return
            self.stream([{"delta": {"content": part}} for part in ("Hel", "lo")])
        else:
            self.stream([{"text": part} for part in (" upon", " a time")])

    def answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, choices: list[dict[str, object]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for choice in choices:
            chunk = {"id": "1", "object": "chunk", "created": 1, "model": "tiny",
                     "choices": [{"index": 0, **choice}]}  # fmt: skip
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Endpoint, "seen", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_what_is_piped_in_is_one_message(
    raylm, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_endpoint(store, {"url": url, "models": ["tiny"]})
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    done = raylm("chat", "--system", "be brief")
    assert (done.code, done.out, done.err) == (0, "Hello\n", "")
    (asked,) = Endpoint.seen
    assert asked["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "two\nlines"},
    ]


def test_a_model_without_a_template_continues_text_and_says_so(
    raylm, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Endpoint, "has_template", False)
    monkeypatch.setattr("sys.stdin", io.StringIO("Once"))
    done = raylm("chat", "tiny", "--url", url)
    assert (done.code, done.out) == (0, " upon a time\n")
    assert "no chat template" in done.err
    assert Endpoint.seen[-1]["prompt"] == "Once"


def test_errors_of_chat_are_lines_with_a_remedy(
    raylm, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    unknown = raylm("chat", "tinny", "--url", url)
    assert unknown.code == 2
    assert "did you mean 'tiny'?" in unknown.err
    nobody = raylm("chat", "--url", "http://127.0.0.1:9/v1")
    assert nobody.code == 3
    assert "raylm serve" in nobody.err
    nothing = raylm("chat")
    assert nothing.code == 2
    assert "raylm serve" in nothing.err
