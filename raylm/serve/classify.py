"""POST /v1/classify, as vLLM has it: for every text the likeliest class, and all probabilities."""

from __future__ import annotations

import json
import time

from raylm.engine.admission import check_feature
from raylm.engine.encode import ClassifyRequest
from raylm.serve.catalog import Entry
from raylm.serve.inputs import InputBody, each, input_ids
from raylm.serve.reply import Reply, Terms


class ClassifyBody(InputBody):
    """Texts to classify."""


async def classify(body: ClassifyBody, entry: Entry, terms: Terms) -> Reply:
    """The class of every input.

    Raises:
        RequestError: refused, or the engine failed.
    """
    able = await entry.backend.capabilities()
    check_feature("classify", able)
    texts, num_cut = await input_ids(body, entry, able, terms.limits)
    await terms.count(sum(len(ids) for ids in texts))
    requests = [
        ClassifyRequest(
            f"{terms.call_id}-{index}",
            ids,
            priority=terms.priority,
            tenant=terms.tenant,
            deadline_s=terms.deadline_s,
        )
        for index, ids in enumerate(texts)
    ]
    found = await each(entry.backend.classify, requests, terms)
    num_tokens = sum(one.num_tokens for one in found)
    answer = {
        "id": f"classify-{terms.call_id}",
        "object": "list",
        "created": int(time.time()),
        "model": entry.model.name,
        "data": [
            {
                "index": index,
                "label": one.label,
                "probs": list(one.probabilities),
                "num_classes": len(one.labels),
            }
            for index, one in enumerate(found)
        ],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    return Reply(json.dumps(answer), num_tokens, num_cut)
