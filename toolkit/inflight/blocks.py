"""The pool of KV blocks. Full blocks with the same tokens in them and before them are shared."""

from array import array
from collections import Counter, OrderedDict
from hashlib import sha256
from itertools import takewhile

from toolkit.inflight.request import Request


class BlockPool:
    """Blocks 0 .. size - 1, each used (referenced) or idle. An idle block that was published is cached: it keeps its
    prefix until it is taken for another. Every operation is O(1) per block; to make a pool is O(1)."""

    def __init__(self, size: int, tokens_per_block: int, reuse: bool) -> None:
        self.tokens_per_block, self.reuse = tokens_per_block, reuse
        self.size, self.untouched = size, 0  # blocks from `untouched` on have never been used
        self.references: Counter[int] = Counter()
        # Of those used: first with nothing to keep, then least recent.
        self.idle: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self.evicted = 0  # cached blocks that were taken for others

    @property
    def free(self) -> int:
        """How many blocks can be taken: the idle ones, and those that were never used."""
        return len(self.idle) + self.size - self.untouched

    @property
    def used(self) -> int:
        """How many blocks are referenced."""
        return self.untouched - len(self.idle)

    def match(self, request: Request) -> list[int]:
        """The blocks of the longest published prefix of the request; they are not referenced yet (see `take`). The
        block of the last token is never among them: its logits are needed for the next token."""
        full = (len(request.tokens) - 1) // self.tokens_per_block if self.reuse else 0
        known = takewhile(self._block_of.__contains__, self._digests(request, full))
        return list(map(self._block_of.__getitem__, known))

    def take(self, matched: list[int], fresh: int) -> list[int]:
        """A block table: the matched blocks, and `fresh` new ones. KeyError if there are too few."""
        for block in matched:
            self.idle.pop(block, None)
            self.references[block] += 1
        table = list(matched)
        for _ in range(fresh):
            block = self._least_needed()
            if self.reuse and block in self._digest_of:
                del self._block_of[self._digest_of.pop(block)]
                self.evicted += 1
            self.references[block] = 1
            table.append(block)
        return table

    def _least_needed(self) -> int:
        """Take a block: one without a prefix, else one that was never used, else the least recent. KeyError without
        any."""
        first = next(iter(self.idle), None)
        if self.untouched < self.size and (first is None or first in self._digest_of):
            self.untouched += 1
            return self.untouched - 1
        return self.idle.popitem(last=False)[0]

    def publish(self, request: Request, start: int) -> None:
        """Offer the blocks filled since position `start` for reuse. When two sequences compute one prefix
        side by side, the first to publish shares its blocks and the other's stay private. Only with reuse."""
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
                self.idle[block] = None
                self.idle.move_to_end(block, last=block in self._digest_of)

    def _digests(self, request: Request, count: int) -> list[bytes]:
        """Names of the first full blocks, each made once from the tokens of the block and the name before it. The hash
        is cryptographic: a collision would show the context of one user to another."""
        while len(request.digests) < count:
            start = len(request.digests) * self.tokens_per_block
            tokens = array("q", request.tokens[start : start + self.tokens_per_block]).tobytes()
            request.digests.append(sha256(b"".join(request.digests[-1:]) + tokens).digest())
        return request.digests[:count]
