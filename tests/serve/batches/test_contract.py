"""Files and batches against their part of the document: requests made up from it."""

from __future__ import annotations

from typing import Any

import pytest

from raylm.config.serve import BatchesConfig
from tests.serve.batches.conftest import chat_line
from tests.serve.conftest import KEY
from tests.serve.test_contract import SEED, unexpected


def only_batches(document: dict[str, Any]) -> dict[str, Any]:
    """That part of it; the other paths have a test of their own."""
    kept = {path: item for path, item in document["paths"].items() if "/files" in path or
            "/batches" in path}  # fmt: skip
    return document | {"paths": kept}


@pytest.mark.parametrize("keys", [True, False], ids=["with keys", "without"])
def test_nothing_but_what_is_described(api_of, keys):
    api = api_of(BatchesConfig(max_files=200, max_batches=50), keys=(KEY,) if keys else ())
    key = KEY if keys else "none"
    file_id = api.upload(chat_line("a") * 2, key)
    known = [file_id, api.start(chat_line("b"), key=key)]
    with api.executing():
        problems, statuses = unexpected(
            api.http.app,
            keys=keys,
            max_time_s=25,
            max_examples=10,
            seed=SEED,
            part=only_batches,
            known_ids=known,
        )
    assert not problems, problems[0]
    assert statuses[200] > 0 and statuses[400] > 0 and statuses[404] > 0
    assert (statuses[401] > 0) is keys
    assert not [status for status in statuses if status >= 500]
