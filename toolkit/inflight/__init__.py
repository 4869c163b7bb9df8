"""In-flight batching: which sequences run in each step, and in which KV blocks.

Decisions only: no clock, tensors or threads. An engine computes what they say, a simulator times it:

    scheduler.submit(request)
    while step := scheduler.schedule():             # up to `micro_batches` steps in flight at once
        tokens, finished = run(step.works)          # an entry for each work that emits
        scheduler.complete(step, tokens, finished)  # in the order in which they were scheduled
"""

from toolkit.inflight.request import Request, State
from toolkit.inflight.scheduler import Scheduler, SchedulerConfig, Stats
from toolkit.inflight.step import Step, Work

__all__ = ["Request", "Scheduler", "SchedulerConfig", "State", "Stats", "Step", "Work"]
