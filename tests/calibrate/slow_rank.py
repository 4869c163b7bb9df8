"""Ranks that are slowed on purpose; in a module of their own, for the processes that run them to import."""

import time

from toolkit.engine.rehearsal import worker
from toolkit.engine.rehearsal.worker import Rank

SLEPT_S = 0.2
STEP_S, TOKEN_S = 0.03, 0.0005


class SlowSecondRank(Rank):
    def compute(self, message):
        if self.rank == 1:
            time.sleep(SLEPT_S)
        return super().compute(message)


class LateSecondRank(Rank):
    """As on a busy machine: the core is taken from it after it has sent its result."""

    def compute(self, message):
        result = super().compute(message)
        if self.rank == 1:
            time.sleep(SLEPT_S)
        return result


class PacedRank(Rank):
    """Asleep for most of a step, so that its time hardly depends on what else the cores do."""

    def compute(self, message):
        tokens = int(message[2])  # see toolkit.engine.rehearsal.batch
        time.sleep(STEP_S + tokens * TOKEN_S)
        return super().compute(message)


def work_paced(settings, rank: int, port: int) -> None:
    """`toolkit.engine.rehearsal.worker.work` with a PacedRank."""
    worker.Rank = PacedRank
    worker.work(settings, rank, port)
