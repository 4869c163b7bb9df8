"""What every rank does with a step, and the loop of the ranks above 0."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.engine.rehearsal.batch import STOP, Batch
from toolkit.engine.rehearsal.comm import LOGITS, STEP, LastWords, Peers
from toolkit.engine.rehearsal.model import Stage
from toolkit.engine.settings import EngineSettings

WORTH_SHARING = 256
"""From this hidden size on, a second thread gains more than it costs (at 128 it costs half the speed)."""


class Rank:
    """A loaded stage and its connections. Making it waits for all other ranks. Rank 0's store listens at `port`."""

    def __init__(self, settings: EngineSettings, rank: int, port: int, last_words: LastWords | None = None) -> None:
        self.settings, self.rank = settings, rank
        if settings.mapping.world_size > 1 or settings.model["hidden_size"] < WORTH_SHARING:
            torch.set_num_threads(1)
        self.peers = Peers(settings, rank, port, last_words)
        self.stage = Stage(settings, rank, self.peers.all_reduce)
        self.peers.await_all()

    @torch.inference_mode()
    def compute(self, message: Tensor) -> Tensor | None:
        """Run this rank's layers and pass the result on. Returns what rank 0 would send to itself."""
        for peer in self.peers.followers:
            self.peers.send(peer, STEP, message)
        batch = Batch(message, self.settings.scheduling.tokens_per_block, self.settings.model["hidden_size"])
        result = self.stage.forward(batch)
        for peer in self.peers.downstream:
            self.peers.send(peer, STEP, torch.cat((batch.message, result.view(torch.int32).flatten())))
        if self.rank and self.stage.is_last:
            self.peers.send(0, LOGITS, result)  # also when nothing is emitted: the leader waits for each step
        return result if self.stage.is_last else None


def work(settings: EngineSettings, rank: int, port: int) -> None:
    """Compute the steps of rank 0 until it says stop. When another rank dies, this process ends at once."""
    me = Rank(settings, rank, port)
    while not torch.equal((message := me.peers.steps.next())[: len(STOP)], STOP):
        me.compute(message)
    me.peers.leave()
