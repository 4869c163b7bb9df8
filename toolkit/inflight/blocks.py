"""The pool of KV blocks. Full blocks with the same tokens in them and before them are shared."""

from array import array
from collections import Counter, OrderedDict
from hashlib import sha256
from itertools import takewhile

from toolkit.inflight.request import Request


class BlockPool:
    """Blocks 0 .. size - 1, each used (referenced) or not. A block that is not used and was published is cached: it
    keeps its prefix until it is taken for another. Every operation is O(1) per block; to make a pool is O(1)."""

    def __init__(self, size: int, tokens_per_block: int, reuse: bool) -> None:
        self.tokens_per_block, self.reuse = tokens_per_block, reuse
        # Blocks from `untouched` on have never been used; `evicted` counts cached blocks that were taken for others.
        self.size, self.untouched, self.evicted = size, 0, 0
        self.references: Counter[int] = Counter()  # only with reuse
        self.idle: list[int] = []  # were used, and have nothing to keep; the next to be taken last
        self.cached: OrderedDict[int, None] = OrderedDict()  # least recent first
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """How many blocks can be taken: those that are not used, or never were."""
        return len(self.idle) + len(self.cached) + self.size - self.untouched

    @property
    def used(self) -> int:
        """How many blocks are referenced."""
        return self.size - self.free

    def match(self, request: Request) -> list[int]:
        """The blocks of the longest published prefix of the request; they are not referenced yet (see `take`). The
        block of the last token is never among them: its logits are needed for the next token."""
        full = (len(request.tokens) - 1) // self.tokens_per_block if self.reuse else 0
        known = takewhile(self._block_of.__contains__, self._digests(request, full))
        return list(map(self._block_of.__getitem__, known))

    def take(self, matched: list[int], fresh: int) -> list[int]:
        """A block table: the matched blocks, and `fresh` new ones. KeyError if there are too few."""
        for block in matched:
            self.cached.pop(block, None)
            self.references[block] += 1
        table = self.idle[: -fresh - 1 : -1]  # from its end
        del self.idle[len(self.idle) - len(table) :]
        new = min(fresh - len(table), self.size - self.untouched)
        table += range(self.untouched, self.untouched + new)
        self.untouched += new
        for _ in range(fresh - len(table)):
            table.append(self.cached.popitem(last=False)[0])
            del self._block_of[self._digest_of.pop(table[-1])]
            self.evicted += 1
        for block in table if self.reuse else ():
            self.references[block] = 1
        return matched + table

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
        if not self.reuse:
            self.idle += reversed(table)
        for block in reversed(table) if self.reuse else ():
            references = self.references[block] = self.references[block] - 1
            if not references and block in self._digest_of:
                self.cached[block] = None
            elif not references:
                self.idle.append(block)

    def _digests(self, request: Request, count: int) -> list[bytes]:
        """Names of the first full blocks, each made once from the tokens of the block and the name before it. The hash
        is cryptographic: a collision would show the context of one user to another."""
        while len(request.digests) < count:
            start = len(request.digests) * self.tokens_per_block
            tokens = array("q", request.tokens[start : start + self.tokens_per_block]).tobytes()
            request.digests.append(sha256(b"".join(request.digests[-1:]) + tokens).digest())
        return request.digests[:count]
