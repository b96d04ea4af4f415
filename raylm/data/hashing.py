"""Hashes that decide the split, the order and the identity of documents.

Every choice is a pure function of content and seed, so no choice depends on how many
workers there were or which of them came first.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

HASH_BYTES = 16
HashArray = npt.NDArray[np.bytes_]
"""[n] of dtype S16; numpy ignores trailing NULs in all of them alike, so equality is exact."""
U64 = npt.NDArray[np.uint64]


def text_hash(data: bytes) -> bytes:
    """The first 16 bytes of SHA-256."""
    return hashlib.sha256(data).digest()[:HASH_BYTES]


def document_id(source: str, hashed: bytes) -> bytes:
    """Identity of a document: its source's name with its text's hash, 16 bytes."""
    return text_hash(source.encode() + b"\0" + hashed.ljust(HASH_BYTES, b"\0"))


def mix64(values: U64) -> U64:
    """The finaliser of splitmix64 (Steele et al., OOPSLA 2014): a bijection of 64 bits."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def seeded(hashes: HashArray, seed: int, purpose: str) -> U64:
    """64 uniform bits [n] for each hash, independent for each seed and purpose."""
    key = int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:8], "little")
    words = hashes.astype(f"S{HASH_BYTES}").view("<u8").reshape(-1, 2)
    return mix64(mix64(words[:, 0] ^ np.uint64(key)) ^ words[:, 1])


def fractions(hashes: HashArray, seed: int, purpose: str) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), one for each hash [n]."""
    return (seeded(hashes, seed, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53
