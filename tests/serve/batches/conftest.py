"""A gateway with batches, the official client, and executors that share a folder with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from raylm.config.serve import BatchesConfig
from raylm.serve.batches.ask import Retry
from raylm.serve.batches.endpoints import BatchRoutes
from raylm.serve.batches.executor import Executor
from raylm.serve.endpoints import Gateway
from raylm.serve.keys import Key
from raylm.serve.routes import build_app
from tests.serve.conftest import keyring_of

DEADLINE_S = 60.0
QUICK = Retry(max_failures=3, first_s=0.01, longest_s=0.02)


@dataclass
class Api:
    """The endpoint, and the folder behind it."""

    gateway: Gateway
    engine: Any
    http: TestClient
    root: Path
    config: BatchesConfig
    woken: list[Callable[[], None]]

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(
            base_url="http://testserver/v1", api_key=key, max_retries=0, http_client=self.http
        )

    @contextlib.contextmanager
    def executing(self, retry: Retry = QUICK) -> Iterator[None]:
        """An executor in a thread; its end is as sudden for the batches as a kill."""
        started = threading.Event()
        loop = asyncio.new_event_loop()

        async def work() -> None:
            executor = Executor(
                self.root,
                self.gateway,
                max_lines=self.config.max_lines,
                max_concurrency=self.config.max_concurrency,
                retry=retry,
            )
            self.woken.append(lambda: loop.call_soon_threadsafe(executor.wake))
            started.set()
            await executor.run()

        def run() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
            # What a thread still writes would be gone with the process.
            loop.run_until_complete(loop.shutdown_default_executor())

        task = loop.create_task(work())
        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert started.wait(DEADLINE_S)
            yield
        finally:
            self.woken.clear()
            loop.call_soon_threadsafe(task.cancel)
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
            loop.close()

    def upload(self, text: str, key: str = "none") -> str:
        file = ("in.jsonl", text.encode())
        return self.client(key).files.create(file=file, purpose="batch").id

    def start(
        self,
        text: str,
        endpoint: Any = "/v1/chat/completions",
        key: str = "none",
        **more: Any,
    ) -> str:
        made = self.client(key).batches.create(
            input_file_id=self.upload(text, key),
            endpoint=endpoint,
            completion_window="24h",
            **more,
        )
        assert made.status == "validating"
        return made.id

    def wait(self, batch_id: str, *statuses: str, key: str = "none") -> Any:
        """The batch, once it has one of the statuses."""
        deadline = time.monotonic() + DEADLINE_S
        while (batch := self.client(key).batches.retrieve(batch_id)).status not in statuses:
            assert time.monotonic() < deadline, batch
            time.sleep(0.02)
        return batch

    def wait_answers(self, batch_id: str, num: int) -> None:
        """Until so many of a batch that goes on are on the disk."""
        deadline = time.monotonic() + DEADLINE_S
        while self.wait(batch_id, "in_progress").request_counts.completed < num:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def lines_of(self, file_id: str, key: str = "none") -> list[dict[str, Any]]:
        text = self.client(key).files.content(file_id).text
        return [json.loads(line) for line in text.splitlines()]


def chat_line(custom_id: str, **body: Any) -> str:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}], "max_tokens": 3}
    return line(custom_id, "/v1/chat/completions", asked | body)


def line(custom_id: str, url: str, body: Any) -> str:
    fields = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(fields) + "\n"


@pytest.fixture
def api_of(serve_here: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """api_of(config=..., keys=..., **what serve_here takes) -> Api."""
    with contextlib.ExitStack() as stack:

        def make(
            config: BatchesConfig | None = None,
            keys: tuple[str | Key, ...] = (),
            **engine: Any,
        ) -> Api:
            served = serve_here(**engine)
            config = config or BatchesConfig()
            root, woken = tmp_path / "store" / "batches", []
            routes = BatchRoutes(
                root,
                config,
                served.gateway.limits,
                served.gateway.admission,
                lambda: [wake() for wake in woken],
            )
            app = build_app(served.gateway, keyring_of(keys), routes)
            http = stack.enter_context(TestClient(app, raise_server_exceptions=False))
            return Api(served.gateway, served.engine, http, root, config, woken)

        yield make
