"""Messages between ranks, over gloo on this machine only.

A receive that is already waiting when its message arrives takes 0.1 ms; one that is posted after it takes
4 ms, and gloo's own all-reduce of two ranks 0.3 ms. So every receive here is posted ahead, into a buffer
large enough for the largest message (gloo accepts shorter ones), and all-reduce is an exchange of such.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import defaultdict, deque
from datetime import timedelta
from functools import reduce
from typing import NoReturn

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, TCPStore, Work

from toolkit.engine.rehearsal.batch import longest_message
from toolkit.engine.rehearsal.settings import EngineSettings

HOST = "127.0.0.1"
MEETING = timedelta(minutes=5)
"""How long ranks wait for each other to start."""
FOREVER = timedelta(days=365)
STEP, PARTIAL, LOGITS, FAREWELL = range(4)
"""Kinds of messages; each is a queue of its own between two ranks."""


class Peers:
    """This rank's connections to the others. When one of them dies, so does this process, at once."""

    def __init__(self, settings: EngineSettings, rank: int, port: int) -> None:
        self.mapping, self.rank, self.world = settings.mapping, rank, settings.mapping.world_size
        self._meet(port)
        self._sent: dict[int, deque[tuple[Work, Tensor]]] = defaultdict(deque)
        limits, stage, block = settings.limits, self.mapping.pp_rank(rank), settings.scheduling.tokens_per_block
        hidden, vocabulary = settings.model["hidden_size"], settings.model["vocab_size"]
        self.group = self.mapping.tp_group(stage)
        self.next = rank + self.mapping.tp if not self.mapping.is_last_stage(rank) else None
        partial, logits = (
            limits["max_num_tokens"] * hidden,
            limits["max_batch_size"] * -(-vocabulary // self.mapping.tp),
        )
        self._partials = {peer: Inbox(self, peer, PARTIAL, partial) for peer in self.group if peer != rank}
        if rank:
            source = rank - self.mapping.tp if stage else 0
            self.steps = Inbox(self, source, STEP, longest_message(limits, hidden, block))
        else:
            last = [peer for peer in self.mapping.tp_group(self.mapping.pp - 1) if peer]
            self.logits = {peer: Inbox(self, peer, LOGITS, logits) for peer in last}
        self._farewell = Inbox(self, (rank + 1) % self.world, FAREWELL, 1)
        self._watch = threading.Thread(target=self._farewell.next, daemon=True)
        self._watch.start()

    def _meet(self, port: int) -> None:
        with socket.socket() as listener:
            if self.rank == 0:  # otherwise the store would listen on all addresses
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((HOST, port))
                listener.listen(self.world)
            listening = listener.detach() if self.rank == 0 else None
        self._store = TCPStore(HOST, port, self.world, self.rank == 0, MEETING, master_listen_fd=listening)
        options = ProcessGroupGloo._Options()
        options._timeout, options._devices = MEETING, [ProcessGroupGloo.create_device(hostname=HOST)]
        self.gloo = ProcessGroupGloo(self._store, self.rank, self.world, options)

    def await_all(self) -> None:
        """Return when every rank has come here."""
        self._store.set(f"ready{self.rank}", b"")
        self._store.wait([f"ready{rank}" for rank in self.mapping.ranks], FOREVER)

    def send(self, peer: int, kind: int, message: Tensor) -> None:
        """Send without waiting. The message must not change afterwards."""
        message = message.contiguous()
        sent = self._sent[peer]
        sent.append((self.gloo.send([message.view(torch.int32).flatten()], peer, kind), message))
        if len(sent) > 2 * self.mapping.pp + 2:  # more than can be under way
            self.wait(sent.popleft()[0], peer)

    def all_reduce(self, part: Tensor) -> Tensor:
        """The sum over the ranks of this stage, added in rank order: the same bits on each of them."""
        for peer in self._partials:
            self.send(peer, PARTIAL, part)
        parts = [part if peer == self.rank else self._partials[peer].next(part.shape) for peer in self.group]
        return reduce(torch.add, parts)

    def wait(self, work: Work, peer: int) -> None:
        try:
            work.wait(FOREVER)
        except RuntimeError as error:
            self._lost(peer, error)

    def leave(self) -> None:
        """Part as friends: tell the rank that watches this one, then wait until the one watched says so."""
        for peer, sent in self._sent.items():
            for work, _ in sent:
                self.wait(work, peer)
        watcher = (self.rank - 1) % self.world
        self.wait(self.gloo.send([torch.zeros(1, dtype=torch.int32)], watcher, FAREWELL), watcher)
        self._watch.join()

    def _lost(self, peer: int, error: RuntimeError) -> NoReturn:
        reason = str(error).partition("\n")[0]
        print(f"rank {self.rank}: lost rank {peer}, which ends this one: {reason}", file=sys.stderr, flush=True)
        os._exit(1)


class Inbox:
    """Messages of one kind from one peer, in order. While one buffer is read, the other awaits the next."""

    def __init__(self, peers: Peers, peer: int, kind: int, size: int) -> None:
        self._peers, self._peer, self._kind = peers, peer, kind
        self._buffers = [torch.empty(size, dtype=torch.int32) for _ in range(2)]
        self._post()

    def _post(self) -> None:
        self._work = self._peers.gloo.recv([self._buffers[0]], self._peer, self._kind)

    def next(self, shape: torch.Size | None = None) -> Tensor:
        """The next message, as float32 if it has a shape; valid until the one after it is asked for."""
        self._peers.wait(self._work, self._peer)
        message = self._buffers[0]
        self._buffers.reverse()
        self._post()
        return message if shape is None else message[: shape.numel()].view(torch.float32).view(shape)
