"""What every rank does with a step, and the loop of the ranks above 0."""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.engine.rehearsal.batch import STOP, Batch
from toolkit.engine.rehearsal.comm import LOGITS, STEP, Peers
from toolkit.engine.rehearsal.model import Stage
from toolkit.engine.rehearsal.settings import EngineSettings


class Rank:
    """A loaded stage and its connections; ready when all ranks are. `port` is that of rank 0's store."""

    def __init__(self, settings: EngineSettings, rank: int, port: int | None) -> None:
        self.settings, self.rank, self.peers = settings, rank, None
        if settings.mapping.world_size > 1:
            torch.set_num_threads(1)
            self.peers = Peers(settings, rank, port)
        self.stage = Stage(settings, rank, self.peers.all_reduce if settings.mapping.tp > 1 else lambda part: part)
        if self.peers:
            self.peers.await_all()

    @torch.inference_mode()
    def compute(self, message: Tensor) -> Tensor | None:
        """Run this rank's layers and pass the result on; what rank 0 would send to itself is returned."""
        batch = Batch(message, self.settings.scheduling.tokens_per_block, self.settings.model["hidden_size"])
        result = self.stage.forward(batch)
        if not self.stage.is_last:
            self.peers.send(self.peers.next, STEP, torch.cat((batch.message, result.view(torch.int32).flatten())))
        elif self.rank:
            # A step that emits nothing is answered, too: the leader waits for the end of each.
            self.peers.send(0, LOGITS, result if len(result) else torch.zeros(1))
        else:
            return result
        return None


def work(settings: EngineSettings, rank: int, port: int) -> None:
    """Compute what rank 0 says until it says stop. When another rank dies, this process ends at once."""
    me = Rank(settings, rank, port)
    while not torch.equal((message := me.peers.steps.next())[: len(STOP)], STOP):
        me.compute(message)
    if me.peers.next is not None:
        me.peers.send(me.peers.next, STEP, STOP)
    me.peers.leave()
