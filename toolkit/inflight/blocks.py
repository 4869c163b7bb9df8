"""The pool of KV blocks. With reuse, full blocks with the same tokens in them and before them are shared."""

from array import array
from collections import Counter, OrderedDict
from collections.abc import Collection
from hashlib import sha256
from itertools import takewhile

from toolkit.inflight.request import Request


class BlockPool:
    """Blocks 0 .. size - 1, each used or idle. No block is shared. To make a pool is O(1)."""

    reuse = False
    evicted = 0  # cached blocks that were taken for others

    def __init__(self, size: int, tokens_per_block: int) -> None:
        self.size, self.tokens_per_block = size, tokens_per_block
        self.untouched = 0  # blocks from `untouched` on have never been used
        self._stack: list[int] = []

    @property
    def idle(self) -> Collection[int]:
        """The blocks that were used and are not any more."""
        return self._stack

    @property
    def free(self) -> int:
        """How many blocks can be taken: the idle ones, and those that were never used."""
        return len(self._stack) + self.size - self.untouched

    @property
    def used(self) -> int:
        """How many blocks are referenced."""
        return self.size - self.free

    def match(self, request: Request) -> list[int]:
        """The cached blocks that the request can begin with: none without reuse."""
        return []

    def in_use(self, blocks: list[int]) -> int:
        """How many of these cached blocks are referenced now."""
        return 0

    def take(self, matched: list[int], fresh: int) -> list[int]:
        """A block table: the matched blocks, and `fresh` new ones. KeyError if there are too few."""
        if fresh > self.free:
            raise KeyError("too few blocks")
        rest = max(0, len(self._stack) - fresh)
        table = self._stack[rest:]
        del self._stack[rest:]
        table.reverse()  # the block on top of the stack is the first
        missing = fresh - len(table)
        table += range(self.untouched, self.untouched + missing)
        self.untouched += missing
        return table

    def publish(self, request: Request, start: int) -> None:
        """Offer the blocks filled since position `start` for reuse."""

    def release(self, table: list[int]) -> None:
        """Give the blocks back: the first one is the next to be taken."""
        self._stack += table[::-1]


class SharingPool(BlockPool):
    """Blocks may be referenced several times. An idle block that was published is cached: it keeps its prefix until it
    is taken for another. Every operation is O(1) per block."""

    reuse = True

    def __init__(self, size: int, tokens_per_block: int) -> None:
        super().__init__(size, tokens_per_block)
        self.references: Counter[int] = Counter()
        # Of those used: first with nothing to keep, then least recent.
        self._order: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def idle(self) -> Collection[int]:
        return self._order

    @property
    def free(self) -> int:
        return len(self._order) + self.size - self.untouched

    def match(self, request: Request) -> list[int]:
        """The blocks of the longest published prefix of the request; they are not referenced yet (see `take`). The
        block of the last token is never among them: its logits are needed for the next token."""
        full = (len(request.tokens) - 1) // self.tokens_per_block
        known = takewhile(self._block_of.__contains__, self._digests(request, full))
        return list(map(self._block_of.__getitem__, known))

    def in_use(self, blocks: list[int]) -> int:
        return sum([self.references[block] > 0 for block in blocks])

    def take(self, matched: list[int], fresh: int) -> list[int]:
        for block in matched:
            self._order.pop(block, None)
            self.references[block] += 1
        table = list(matched)
        for _ in range(fresh):
            block = self._least_needed()
            if block in self._digest_of:
                del self._block_of[self._digest_of.pop(block)]
                self.evicted += 1
            self.references[block] = 1
            table.append(block)
        return table

    def _least_needed(self) -> int:
        """Take a block: one without a prefix, else one that was never used, else the least recent. KeyError without
        any."""
        first = next(iter(self._order), None)
        if self.untouched < self.size and (first is None or first in self._digest_of):
            self.untouched += 1
            return self.untouched - 1
        return self._order.popitem(last=False)[0]

    def publish(self, request: Request, start: int) -> None:
        """Offer the blocks filled since position `start` for reuse. When two sequences compute one prefix
        side by side, the first to publish shares its blocks and the other's stay private."""
        before, after = start // self.tokens_per_block, request.computed // self.tokens_per_block
        if after > before:
            digests = self._digests(request, after)[before:]
            for block, digest in zip(request.blocks[before:after], digests, strict=True):
                if self._block_of.setdefault(digest, block) == block:
                    self._digest_of[block] = digest

    def release(self, table: list[int]) -> None:
        """Drop one reference on each block, the last block first: so eviction shortens a prefix from its end."""
        for block in reversed(table):
            references = self.references[block] = self.references[block] - 1
            if not references:
                self._order[block] = None
                self._order.move_to_end(block, last=block in self._digest_of)

    def _digests(self, request: Request, count: int) -> list[bytes]:
        """Names of the first full blocks, each made once from the tokens of the block and the name before it. The hash
        is cryptographic: a collision would show the context of one user to another."""
        while len(request.digests) < count:
            start = len(request.digests) * self.tokens_per_block
            tokens = array("q", request.tokens[start : start + self.tokens_per_block]).tobytes()
            request.digests.append(sha256(b"".join(request.digests[-1:]) + tokens).digest())
        return request.digests[:count]


def pool_of(size: int, tokens_per_block: int, reuse: bool) -> BlockPool:
    """A pool of idle blocks, with or without reuse."""
    return (SharingPool if reuse else BlockPool)(size, tokens_per_block)
