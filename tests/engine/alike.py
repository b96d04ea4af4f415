"""What engines have in common, asked of each: its test calls it with the engine at hand."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np

from raylm.engine.protocol import Grammar
from raylm.errors import RaylmError


def follows_its_grammar(engine: Any, client: Any, prompts: list[list[int]]) -> None:
    """An answer bound by a schema is right beside a free one, and when it is continued."""
    schema = {
        "type": "object",
        "properties": {"sort": {"enum": ["a", "b"]}, "size": {"type": "integer", "maximum": 99}},
        "required": ["sort", "size"],
        "additionalProperties": False,
    }
    settings = {
        "max_tokens": 200,
        "temperature": 0.8,
        "seed": 2,
        "grammar": Grammar("json_schema", json.dumps(schema)),
    }
    (alone,) = client.ask(engine, client.request(prompts[4], max_tokens=20))
    bound, free = client.ask(
        engine,
        client.request(prompts[3], **settings),
        client.request(prompts[4], max_tokens=20),
    )
    assert client.ids(free) == client.ids(alone)
    assert "grammar" in engine.capabilities().features
    found = json.loads(client.text(bound))
    assert found["sort"] in "ab" and found["size"] <= 99
    ids = client.ids(bound)
    half = len(ids) // 2
    (rest,) = client.ask(engine, client.request(prompts[3], ids[:half], **settings))
    assert client.ids(rest) == ids[half:]


def bad_row_leaves_the_batch_alone(
    engine: Any, client: Any, monkeypatch: Any, rows: Any, prompts: list[list[int]]
) -> None:
    """A row that is not finite ends its request; the one beside it is as when asked alone.

    Args:
        rows: what the engine steps, a class with `logits`.
        prompts: the good request's and the bad one's.
    """
    good, bad, alone = (
        client.request(prompts[i], max_tokens=6, ignore_eos=True) for i in (0, 1, 0)
    )
    (expected,) = client.ask(engine, alone)
    answers, whole = engine._loop._runner._answers, rows.logits

    def logits(stepped: Any) -> Any:
        found = whole(stepped)
        for row, answer in enumerate(answers._batch.answers):
            if answer.id == bad.id and answer.num_emitted == 2:
                found[row] = np.nan
        return found

    monkeypatch.setattr(rows, "logits", logits)

    async def both() -> list[Any]:
        return await asyncio.gather(
            client.chunks(engine, bad), client.chunks(engine, good), return_exceptions=True
        )

    error, chunks = asyncio.run(asyncio.wait_for(both(), 30))
    assert isinstance(error, RaylmError) and error.code == "non-finite-logits"
    assert client.ids(chunks) == client.ids(expected)
