"""The pool of KV blocks, with reuse of blocks whose whole prefix is the same."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256


def extend_digests(digests: list[bytes], tokens: list[int], tokens_per_block: int, count: int) -> None:
    """Make `digests` name the first `count` full blocks of `tokens`.

    Each digest covers its block and all before it, because keys and values depend on the whole prefix.
    A cryptographic hash, because a collision would show one user the context of another.
    """
    while len(digests) < count:
        start = len(digests) * tokens_per_block
        block = array("q", tokens[start : start + tokens_per_block]).tobytes()
        digests.append(sha256((digests[-1] if digests else b"") + block).digest())


class BlockPool:
    """Numbers blocks 0 .. size - 1. A block is used (referenced), free, or cached: unreferenced, but
    still holding a published prefix, so that it can be used again or evicted. All steps are O(1) a block.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.references = [0] * size
        self._free = list(range(size - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently released first
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Blocks that `take` can give: free and cached."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        return len(self._cached)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks that hold the longest published prefix of `digests`. Not yet referenced: see `hold`."""
        blocks = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def cost(self, matched: Sequence[int]) -> int:
        """How many available blocks `hold(matched)` uses up: those that nobody references now."""
        return sum(not self.references[block] for block in matched)

    def hold(self, matched: Sequence[int]) -> None:
        for block in matched:
            if not self.references[block]:
                del self._cached[block]
            self.references[block] += 1

    def take(self) -> int:
        """A block to write. Free ones first, then the cached prefix that has been unused for longest.

        Raises IndexError when none is available.
        """
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._digest_of.pop(block)]
        else:
            raise IndexError("no KV block is available")
        self.references[block] = 1
        return block

    def publish(self, block: int, digest: bytes) -> None:
        """Offer a full, computed block for reuse. Two sequences may compute one prefix side by side:
        the first block stays the published one, the other remains private."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference on each. Last block first, so that of one prefix the end is evicted before
        the beginning: a beginning without its end is of use, an end without its beginning is not."""
        for block in reversed(blocks):
            self.references[block] -= 1
            if not self.references[block]:
                if block in self._digest_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)
