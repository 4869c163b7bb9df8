"""Which replica gets a request: the policies of the router in front of several replicas.

Least requests asks all replicas. Power of two asks two that are drawn at random, as Envoy's LEAST_REQUEST does. Prefix
aware is the rule of Dynamo's router, with the weight that `toolkit up` gives it: the fewest blocks, those of the prompt
that are not cached there, four times, and those that the requests there hold. Random asks nobody.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from toolkit.config.operating import PROMPT_WEIGHT
from toolkit.inflight import SchedulerConfig
from toolkit.simulate.replica import Replica
from toolkit.workload import Planned


class Router(Protocol):
    """Chooses a replica for each request."""

    def choose(self, replicas: Sequence[Replica], request: Planned, number: int) -> Replica:
        """The replica for request `number`."""
        ...

    def ended(self, number: int) -> None:
        """Request `number` has ended or was refused."""
        ...


class LeastRequests:
    """The fewest outstanding of `choices` replicas that are drawn at random; of all replicas if `choices` is None.

    Of equals, the first drawn (Envoy draws with replacement), or the first in number of all.
    """

    def __init__(self, choices: int | None = None, seed: int = 0) -> None:
        self._choices, self._random = choices, random.Random(f"{seed} router")

    def choose(self, replicas: Sequence[Replica], request: Planned, number: int) -> Replica:
        asked = replicas if self._choices is None else self._random.choices(replicas, k=self._choices)
        return min(asked, key=lambda replica: replica.outstanding)

    def ended(self, number: int) -> None:
        pass


class PrefixAware:
    """The fewest blocks to compute and to hold. The router remembers which prompts it sent where.

    Each replica's blocks are forgotten in the order in which they were last sent, when there are more than its pool
    holds. Generated tokens count in no block: the router learns of them late.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._size, self._capacity, self._reuse = config.tokens_per_block, config.num_blocks, config.reuse
        self._cached: dict[int, OrderedDict[int, None]] = {}
        self._held: dict[int, int] = {}
        self._sent: dict[int, tuple[int, int]] = {}

    def choose(self, replicas: Sequence[Replica], request: Planned, number: int) -> Replica:
        blocks = self._blocks(request.prompt) if self._reuse else []
        count = -(-len(request.prompt) // self._size)

        def cost(replica: Replica) -> int:
            missing = count - self._overlap(replica.number, blocks)
            return PROMPT_WEIGHT * missing + self._held.get(replica.number, 0)

        chosen = min(replicas, key=cost)
        self._held[chosen.number] = self._held.get(chosen.number, 0) + count
        self._sent[number] = (chosen.number, count)
        self._remember(chosen.number, blocks)
        return chosen

    def ended(self, number: int) -> None:
        replica, count = self._sent.pop(number)
        self._held[replica] -= count

    def _blocks(self, prompt: Sequence[int]) -> list[int]:
        """A name for each full block of a prompt. It depends on all blocks before."""
        names, before = [], 0
        for start in range(0, len(prompt) - self._size + 1, self._size):
            before = hash((before, tuple(prompt[start : start + self._size])))
            names.append(before)
        return names

    def _overlap(self, replica: int, blocks: Sequence[int]) -> int:
        cached = self._cached.get(replica, OrderedDict())
        return next((number for number, block in enumerate(blocks) if block not in cached), len(blocks))

    def _remember(self, replica: int, blocks: Sequence[int]) -> None:
        cached = self._cached.setdefault(replica, OrderedDict())
        for block in blocks:
            cached[block] = None
            cached.move_to_end(block)
        while len(cached) > self._capacity:
            cached.popitem(last=False)


def router_named(name: str, config: SchedulerConfig, seed: int = 0) -> Router:
    """The router of a name of toolkit.config.operating.ROUTERS."""
    if name == "prefix-aware":
        return PrefixAware(config)
    return LeastRequests({"random": 1, "power-of-two": 2}.get(name), seed)
