"""A deployed executor that is killed, and an endpoint that is ended, in the middle of a batch."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import openai
import pytest

from raylm.config.engine import EngineConfig
from raylm.config.serve import BatchesConfig, ServeConfig
from raylm.serve.app import Endpoint, deploy, undeploy
from raylm.serve.prepare import served_folder
from raylm.store import Store
from tests.serve.batches.conftest import chat_line
from tests.serve.conftest import write_llama
from tests.serve.deployed import KEY, figures, get, replicas, until, write_keys

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
TOTAL = 160
CONFIG = ServeConfig(port=0, replicas=1, api_keys="keys", batches=BatchesConfig(max_concurrency=4))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("batches")
    write_keys(root)
    write_llama(root / "tiny", hidden=256, layers=4)
    return root


def start(root: Path, store: Store) -> Endpoint:
    return deploy(
        [served_folder(root / "tiny")],
        CONFIG,
        EngineConfig(),
        cache_root=store.root / "engine",
        base_dir=root,
    )


def client_of(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key=KEY, max_retries=2, timeout=30)


def test_every_line_is_answered_once_whatever_is_killed(root: Path, store: Store) -> None:
    endpoint = start(root, store)
    with client_of(endpoint) as client:
        lines = "".join(chat_line(f"c{i}", max_tokens=64) for i in range(TOTAL))
        file = client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        batch_id = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        ).id

        def num_completed() -> int:
            batch = client.batches.retrieve(batch_id)
            assert batch.status in ("validating", "in_progress"), batch
            return batch.request_counts.completed if batch.request_counts else 0

        until(lambda: num_completed() >= 10)
        (executor,) = replicas("batches")
        executor.send_signal(signal.SIGKILL)
        at_kill = num_completed()
        until(lambda: num_completed() >= at_kill + 10)
        # The calls of batches are counted with all others.
        text = get(endpoint, "/metrics")[1]
        assert 'route="chat"' in text and sum(figures(endpoint, "raylm_requests_total")) >= 10
    undeploy(drain_s=0)

    endpoint = start(root, store)
    with client_of(endpoint) as client:
        until(lambda: client.batches.retrieve(batch_id).status == "completed")
        batch = client.batches.retrieve(batch_id)
        assert batch.output_file_id is not None and batch.error_file_id is None
        answers = client.files.content(batch.output_file_id).text.splitlines()
    ids = [json.loads(answer)["custom_id"] for answer in answers]
    assert sorted(ids) == sorted(f"c{i}" for i in range(TOTAL))
    undeploy(drain_s=0)
