"""What an endpoint tells to ask it: something that its model can do, and that runs as it stands."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from raylm.cli.serve import endpoint_text
from raylm.serve.catalog import ServedModel
from raylm.serve.endpoint import endpoint_of
from raylm.serve.howto import first_call, python_script

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
KINDS: list[tuple[dict[str, Any], str]] = [
    (LLAMA, "completions"),
    ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "completions"),
    ({"model_type": "bert", "architectures": ["BertModel"]}, "embeddings"),
    ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "embeddings"),
    ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, "classify"),
    ({"model_type": "bart", "architectures": ["BartModel"]}, "completions"),  # a plug-in's affair
]


def folder_of(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("config", "call"), KINDS)
def test_a_model_is_asked_for_what_it_can_do(tmp_path, config, call):
    folder = folder_of(tmp_path, config)
    model = ServedModel("m@a", folder, "d" * 64, variant="a", is_default=True)
    endpoint = endpoint_of("127.0.0.1", 80, [model], needs_key=False)
    assert endpoint.models == ("m",)
    assert endpoint.to_dict()["served"] == [
        {"name": "m@a", "variant": "a", "digest": "d" * 64, "names": ["m", "m@a"]}
    ]
    (line,) = [line for line in endpoint_text(endpoint).splitlines() if line.startswith("curl")]
    words = shlex.split(line)
    assert words[1] == f"http://127.0.0.1:80/v1/{call}"
    assert json.loads(words[-1])["model"] == "m"
    assert ("prompt" in json.loads(words[-1])) == (call == "completions")


def test_a_decoder_that_is_meant_for_embeddings_is_asked_for_them(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    assert first_call(folder_of(tmp_path, LLAMA)) == "embeddings"


@pytest.mark.parametrize(
    ("call", "answer", "said"),
    [
        ("completions", {"choices": [{"index": 0, "text": "hello"}]}, "hello"),
        ("embeddings", {"data": [{"index": 0, "embedding": [0.5] * 8}]}, "[0.5, 0.5, 0.5, 0.5]"),
        ("classify", {"data": [{"label": "bug"}]}, "bug"),
    ],
)
def test_the_script_runs_as_it_stands(serve_json, call, answer, said):
    url, asked = serve_json(answer)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(python_script(url, "m", "Once", needs_key=False, call=call), {})
    assert printed.getvalue().strip() == said
    ((path, body),) = asked
    assert path == f"/v1/{call}" and body["model"] == "m"


@pytest.fixture
def serve_json() -> Any:
    """serve_json(answer) -> (url, what was asked): a server that always says the same."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    servers = []

    def make(answer: dict[str, Any]) -> tuple[str, list[Any]]:
        asked: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.path, body))
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/v1", asked

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()
