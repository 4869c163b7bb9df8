"""Messages between ranks, over gloo: on this machine only, or between the addresses that nodes of a group are given.

A receive that waits for its message takes 0.1 ms. One posted after the message has arrived takes 4 ms, and gloo's own
all-reduce 0.3 ms. So every receive is posted ahead, into a buffer for the largest possible message (gloo accepts
shorter ones), and an all-reduce is an exchange of such messages.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import timedelta
from functools import reduce
from typing import NoReturn

import torch
from torch import Tensor
from torch.distributed import Work

from toolkit.engine.rehearsal.batch import STOP, longest_message
from toolkit.engine.rehearsal.gloo import Gloo, open_store
from toolkit.engine.settings import EngineSettings
from toolkit.errors import ToolkitError

# A group over several nodes is given the address of rank 0's node, and that of this node, where this rank listens.
LEADER, OWN = (os.environ.get(f"TOOLKIT_REHEARSAL_{name}", "127.0.0.1") for name in ("LEADER", "ADDRESS"))
MEETING = timedelta(minutes=5)  # how long ranks wait for each other to start
FOREVER = timedelta(days=365)
STEP, PARTIAL, LOGITS, FAREWELL = range(4)  # kinds of messages, each with its own queue
LastWords = Callable[[int], None]


class Peers:
    """This rank's connections to the others. When one dies, `last_words(its rank)` is called, and this process ends."""

    def __init__(self, settings: EngineSettings, rank: int, port: int, last_words: LastWords | None = None) -> None:
        self._last_words, self._losing = last_words, threading.Lock()
        mapping, limits = settings.mapping, settings.limits
        stage, hidden, vocabulary = mapping.pp_rank(rank), settings.model["hidden_size"], settings.model["vocab_size"]
        self.rank, self.world, self.depth = rank, mapping.world_size, 2 * mapping.pp + 2
        self.group = mapping.tp_group(stage)
        self.followers = [*self.group[1:]] if rank == 0 else []  # get each step from this rank, unchanged
        self.downstream = [] if mapping.is_last_stage(rank) else [rank + mapping.tp]
        self._sent: dict[int, deque[tuple[Work, Tensor]]] = defaultdict(deque)
        if self.world == 1:
            return
        self._meet(port, ascii(settings.model_dump()) + os.environ.get("TOOLKIT_RUN_ID", ""))
        partial = limits["max_num_tokens"] * hidden
        self._partials = {peer: Inbox(self, peer, PARTIAL, partial) for peer in self.group if peer != rank}
        if rank:
            longest = longest_message(limits, hidden, settings.scheduling.tokens_per_block)
            self.steps = Inbox(self, rank - mapping.tp if stage else 0, STEP, longest)
        else:
            share = -(-vocabulary // mapping.tp)
            last = [peer for peer in mapping.tp_group(mapping.pp - 1) if peer]
            self.logits = {peer: Inbox(self, peer, LOGITS, limits["max_batch_size"] * share) for peer in last}
        # Each rank watches one other, in a ring, so all know of a death within milliseconds.
        farewell = Inbox(self, (rank + 1) % self.world, FAREWELL, 1)
        self._watch = threading.Thread(target=farewell.wait, daemon=True)
        self._watch.start()

    def _meet(self, port: int, group: str) -> None:
        """Connect to the other ranks. `group` is a text that all of them have, and no other group has."""
        try:
            self._store = open_store(LEADER, port, not self.rank, MEETING)
            if self.rank == 0:
                self._store.set("group", group)
            elif self._store.get("group") != group.encode():
                raise RuntimeError("the ranks of another group meet there")
            self.gloo = Gloo(self._store, self.rank, self.world, OWN, MEETING)
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ToolkitError(f"rank {self.rank} cannot meet the others on port {port}: {reason}") from None

    def await_all(self) -> None:
        """Return when every rank has called this."""
        if self.world > 1:
            self._store.set(f"ready{self.rank}", "")
            try:
                self._store.wait([f"ready{rank}" for rank in range(self.world)], FOREVER)
            except RuntimeError:
                self._lost(0)

    def send(self, peer: int, kind: int, message: Tensor) -> None:
        """Send without waiting. The message must not change afterwards."""
        sent, message = self._sent[peer], message.contiguous().view(torch.int32).flatten()
        try:
            sent.append((self.gloo.send(message, peer, kind), message))
        except RuntimeError:
            self._lost(peer)
        if len(sent) > self.depth:  # more messages than can be under way
            work, _tensor = sent.popleft()  # the tensor must exist until it is sent
            self.wait(work, peer)

    def all_reduce(self, part: Tensor) -> Tensor:
        """The sum over the ranks of this stage. Added in rank order, so that all of them get the same bits."""
        for peer in self.group:
            if peer != self.rank:
                self.send(peer, PARTIAL, part)
        parts = [part if peer == self.rank else self._partials[peer].next(part.shape) for peer in self.group]
        return reduce(torch.add, parts)

    def wait(self, work: Work | None, peer: int) -> None:
        try:
            done = work is not None and work.wait(FOREVER)
        except RuntimeError:
            done = False
        if not done:
            self._lost(peer)

    def _lost(self, peer: int) -> NoReturn:
        with self._losing:  # never released: other threads that notice the loss wait here for the end
            print(f"rank {self.rank} lost rank {peer}, and ends", file=sys.stderr, flush=True)
            if self._last_words:
                self._last_words(peer)
            os._exit(1)

    def leave(self) -> None:
        """Tell the next ranks to stop, and the rank that watches this one that it leaves. Wait for the one watched."""
        for peer in (*self.followers, *self.downstream):
            self.send(peer, STEP, STOP)
        if self.world > 1:
            self.send((self.rank - 1) % self.world, FAREWELL, STOP[:1])
            for peer, sent in self._sent.items():
                for work, _ in sent:
                    self.wait(work, peer)
            self._watch.join()


class Inbox:
    """Messages of one kind from one peer, in order. While one buffer is read, the other receives the next message."""

    def __init__(self, peers: Peers, peer: int, kind: int, size: int) -> None:
        self._peers, self._peer, self._kind = peers, peer, kind
        self._buffers = [torch.empty(size, dtype=torch.int32) for _ in range(2)]
        self._post()

    def _post(self) -> None:
        try:
            self._work: Work | None = self._peers.gloo.receive(self._buffers[0], self._peer, self._kind)
        except RuntimeError:  # the peer is gone, which matters only if another message is expected from it
            self._work = None

    def wait(self) -> None:
        self._peers.wait(self._work, self._peer)

    def next(self, shape: torch.Size | None = None) -> Tensor:
        """The next message, as float32 if `shape` is given. Valid until the next call."""
        self.wait()
        message = self._buffers[0]
        self._buffers.reverse()
        self._post()
        return message if shape is None else message[: shape.numel()].view(torch.float32).view(shape)
