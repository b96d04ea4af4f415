"""Paged key-value memory: which blocks are free, and which belong to which sequence.

A block holds the keys and values of `block_size` consecutive tokens of one sequence, in all
layers (PagedAttention, arXiv:2309.06180). Only numbers are kept here, no memory.
"""

from __future__ import annotations

from raylm.engine.sequence import Sequence


class BlockManager:
    """Hands out block numbers 0 .. num_blocks - 1."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: a block that was just freed is used next, while it is in the caches.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that belong to nobody."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens of one sequence take."""
        return -(-num_tokens // self.block_size)

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` room for its first `num_tokens` tokens; False changes nothing."""
        missing = self.blocks_for(num_tokens) - len(sequence.blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            sequence.blocks.append(self._free.pop())
        return True

    def free(self, sequence: Sequence) -> None:
        """Take all blocks of `sequence` back."""
        self._free.extend(reversed(sequence.blocks))
        del sequence.blocks[:]
