"""Chunks survive the way between processes unchanged."""

from __future__ import annotations

import pickle

from raylm.engine.protocol import Chunk, TokenLogprob
from raylm.serve.transport import pack, unpack

CHUNKS = [
    Chunk("r", 0, (5, 6), "ab"),
    Chunk("r", 2, (7,), "é", (TokenLogprob(7, -0.5, ((7, -0.5), (8, -1.5))),)),
    Chunk("r", 3, (), "", (), "stop"),
    Chunk("r", 0, (5,), "a", num_cached_tokens=64, prompt_logprobs=(None, TokenLogprob(7, -0.5))),
    Chunk("r", 0, (5,), "a", digest="ab" * 32),
]


def test_chunks_are_the_same_after_the_way():
    packed = pickle.loads(pickle.dumps(pack(CHUNKS)))
    assert unpack("r", packed) == CHUNKS


def test_packed_chunks_name_no_class():
    assert b"raylm" not in pickle.dumps(pack(CHUNKS))
