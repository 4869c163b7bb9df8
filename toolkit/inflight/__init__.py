"""In-flight batching: which sequences run in each step, and in which KV blocks.

Pure decisions: no clock, no tensors, no threads. The rehearsal engine executes them on a CPU and a
simulator may execute them with the latency model of a GPU, so that what is rehearsed is what is predicted.

    scheduler.submit(request)
    while step := scheduler.schedule():                 # up to `micro_batches` steps in flight at once
        tokens = ...                                    # run step.works; one token a work that emits
        scheduler.complete(step, tokens, finished)      # in the order in which they were scheduled
"""

from toolkit.inflight.blocks import BlockPool
from toolkit.inflight.request import Request, State
from toolkit.inflight.scheduler import Scheduler, SchedulerConfig, Stats, Step, Work

__all__ = ["BlockPool", "Request", "Scheduler", "SchedulerConfig", "State", "Stats", "Step", "Work"]
