"""POST /v1/embeddings: OpenAI's, and beyond it `pooling` and `truncate`."""

from __future__ import annotations

import base64
import json
from typing import Literal

from raylm.engine.admission import check_feature, check_pooling
from raylm.engine.encode import Embedding, EmbedRequest, Pooling
from raylm.errors import RequestError
from raylm.serve.catalog import Entry
from raylm.serve.inputs import InputBody, each, input_ids
from raylm.serve.reply import Reply, Terms


class EmbeddingBody(InputBody):
    """Texts to turn into vectors of length one."""

    encoding_format: Literal["float", "base64"] | None = None
    """base64 is of float32, little endian; half as long on the wire."""
    dimensions: int | None = None
    pooling: Pooling | None = None


async def embeddings(body: EmbeddingBody, entry: Entry, terms: Terms) -> Reply:
    """A vector for every input.

    Raises:
        RequestError: refused, or the engine failed.
    """
    able = await entry.backend.capabilities()
    check_feature("embed", able)
    check_pooling(body.pooling, able)
    if body.dimensions not in (None, able.embedding_size):
        raise RequestError(
            f"dimensions={body.dimensions}; the embeddings of this model have "
            f"{able.embedding_size}, and are not made for being cut",
            code="invalid-parameter",
            param="dimensions",
        )
    texts, num_cut = await input_ids(body, entry, able, terms.limits)
    await terms.count(sum(len(ids) for ids in texts))
    requests = [
        EmbedRequest(
            f"{terms.call_id}-{index}",
            ids,
            pooling=body.pooling,
            priority=terms.priority,
            tenant=terms.tenant,
            deadline_s=terms.deadline_s,
        )
        for index, ids in enumerate(texts)
    ]

    async def item(request: EmbedRequest) -> tuple[str, int]:
        # Each is written when it comes: all at once would hold up the streams of other calls.
        found = await entry.backend.embed(request)
        return written(found, body.encoding_format), found.num_tokens

    items = await each(item, requests, terms)
    num_tokens = sum(count for _, count in items)
    data = ", ".join(
        f'{{"object": "embedding", "index": {index}, "embedding": {text}}}'
        for index, (text, _) in enumerate(items)
    )
    model = json.dumps(entry.model.name)
    usage = json.dumps({"prompt_tokens": num_tokens, "total_tokens": num_tokens})
    return Reply(
        f'{{"object": "list", "data": [{data}], "model": {model}, "usage": {usage}}}',
        num_tokens,
        num_cut,
    )


def written(embedding: Embedding, encoding_format: str | None) -> str:
    """A vector as JSON text."""
    if encoding_format == "base64":
        raw = embedding.vector.astype("<f4").tobytes()
        return f'"{base64.b64encode(raw).decode("ascii")}"'
    return json.dumps(embedding.vector.tolist())
