"""A rank that is slowed on purpose; in a module of its own, for the processes that run it to import."""

import time

from toolkit.engine.rehearsal.worker import Rank

SLEPT_S = 0.2


class SlowSecondRank(Rank):
    def compute(self, message):
        if self.rank == 1:
            time.sleep(SLEPT_S)
        return super().compute(message)
