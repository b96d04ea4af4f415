"""Paged key-value memory: which blocks are free, who uses the others, and what can be found.

A block holds the keys and values of `block_size` consecutive tokens, in all layers
(PagedAttention, arXiv:2309.06180). Keys and values depend on a block's own tokens and on all
before them, so a full block is known by a key that hashes just that: the key of the block
before it and its token ids. The first block's parent is a hash of the sequence's salt, so that
sequences of different salts never share. Only numbers are kept here, no memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from raylm.engine.sequence import Sequence

_KEY_BYTES = 16  # a collision would show one prompt's cache to another: 2^64 blocks to find one


class BlockManager:
    """Hands out block numbers 0 .. num_blocks - 1.

    A block is in use (by one sequence, or by several that begin alike), or cached (nobody uses
    it, but its key can be found), or free. Cached blocks are evicted when free ones run out,
    those first that were used longest ago, and of a sequence the last first: a block is of no
    use without the ones before it.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        # A stack: a block that was just freed is used next, while it is in the caches.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, None] = {}  # in the order in which they are evicted
        self._num_users = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses; cached ones among them."""
        return len(self._free) + len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens of one sequence take."""
        return -(-num_tokens // self.block_size)

    def num_used_by(self, sequences: Iterable[Sequence]) -> int:
        """Blocks that some sequences use together; shared ones count once."""
        return len({block for sequence in sequences for block in sequence.blocks})

    def admit(self, sequence: Sequence, *, num_spare: int) -> bool:
        """Give a sequence without blocks room for all its tokens; False changes nothing.

        Leading blocks that are known are taken over, and `num_cached` begins after them.
        `num_spare` blocks are left to others.
        """
        found = self._find(sequence)
        num_missing = self.blocks_for(len(sequence.token_ids)) - len(found)
        num_revived = sum(not self._num_users[block] for block in found)
        if num_missing + num_spare > self.num_free - num_revived:
            return False
        for block in found:
            self._cached.pop(block, None)
            self._num_users[block] += 1
        sequence.blocks.extend(found)
        sequence.num_cached = len(found) * self.block_size
        return self.allocate(sequence, len(sequence.token_ids))

    def allocate(self, sequence: Sequence, num_tokens: int, *, num_spare: int = 0) -> bool:
        """Give `sequence` room for its first `num_tokens` tokens; False changes nothing.

        `num_spare` blocks are left to others.
        """
        missing = self.blocks_for(num_tokens) - len(sequence.blocks)
        if missing > 0 and missing + num_spare > self.num_free:
            return False
        for _ in range(missing):
            block = self._free.pop() if self._free else self._evict()
            self._num_users[block] = 1
            sequence.blocks.append(block)
        return True

    def publish(self, sequence: Sequence, start: int, end: int) -> None:
        """Make blocks findable that tokens `start` to `end` have filled.

        Of two sequences that computed the same block side by side, the first one's is found.
        """
        first, last = start // self.block_size, end // self.block_size
        if first == last or not self._prefix_cache:
            return
        self._extend_keys(sequence, last)
        for index in range(first, last):
            key, block = sequence.keys[index], sequence.blocks[index]
            if self._key_of[block] is None and key not in self._block_of:
                self._block_of[key] = block
                self._key_of[block] = key

    def free(self, sequence: Sequence) -> None:
        """Take all blocks of `sequence` back; what is known of them can be found until evicted."""
        for block in reversed(sequence.blocks):
            self._num_users[block] -= 1
            if self._num_users[block]:
                continue
            if self._key_of[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None
        del sequence.blocks[:]
        sequence.num_cached = sequence.num_drafted = 0

    def discard(self, sequence: Sequence) -> list[int]:
        """Take all blocks back when what they hold is not to be trusted: none is found again.

        Returns those that nobody uses any more.
        """
        for block in sequence.blocks:
            key = self._key_of[block]
            if key is not None:
                del self._block_of[key]
                self._key_of[block] = None
        unused = [block for block in sequence.blocks if self._num_users[block] == 1]
        self.free(sequence)
        return unused

    def _find(self, sequence: Sequence) -> list[int]:
        """The longest known beginning, without the block of the last token.

        At least that token is computed, for its logits, and computing writes: never into a
        block that others may be reading.
        """
        if not self._prefix_cache or sequence.num_scored:
            return []
        num_full = (len(sequence.token_ids) - 1) // self.block_size
        self._extend_keys(sequence, num_full)
        found = []
        for key in sequence.keys[:num_full]:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def _extend_keys(self, sequence: Sequence, num_blocks: int) -> None:
        keys, size = sequence.keys, self.block_size
        for index in range(len(keys), num_blocks):
            parent = keys[index - 1] if index else _root(sequence.salt)
            tokens = sequence.token_ids[index * size : (index + 1) * size].tobytes()
            keys.append(blake2b(parent + tokens, digest_size=_KEY_BYTES).digest())

    def _evict(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block]
        key = self._key_of[block]
        assert key is not None
        del self._block_of[key]
        self._key_of[block] = None
        return block


def _root(salt: str) -> bytes:
    # Hashed apart from blocks, so that no salt can be made to look like one.
    data = salt.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=_KEY_BYTES, person=b"salt").digest()
