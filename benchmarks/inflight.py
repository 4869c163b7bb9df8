"""What the scheduler itself costs: 1,000 requests of 1024/128 tokens, 64 in flight, on an engine that takes no time.

python benchmarks/inflight.py
"""

import random
import time
from collections import deque

from toolkit.inflight import Request, Scheduler, SchedulerConfig, State, Step

REQUESTS, PROMPT, OUTPUT = 1000, 1024, 128
BLOCK = 32
ENOUGH = 64 * (PROMPT + OUTPUT) // BLOCK  # for 64 whole sequences
VARIANTS = [
    # policy, reuse, tokens that all prompts begin with, KV blocks
    ("guaranteed_no_evict", False, 0, ENOUGH),
    ("guaranteed_no_evict", True, 0, ENOUGH),
    ("guaranteed_no_evict", True, 512, ENOUGH),
    ("max_utilization", False, 0, ENOUGH * 3 // 4),
    ("max_utilization", True, 0, ENOUGH * 3 // 4),
]


def main() -> None:
    print(f"{'policy':20} {'reuse':5} {'shared':>6} {'blocks':>6} {'works':>7} {'steps':>6} {'s':>5} {'us/work':>7}")
    for policy, reuse, shared, blocks in VARIANTS:
        works, steps, seconds = measure(policy, reuse, shared, blocks)
        result = f"{works:7} {steps:6} {seconds:5.2f} {seconds / works * 1e6:7.2f}"
        print(f"{policy:20} {reuse!s:5} {shared:6} {blocks:6} {result}")


def measure(policy: str, reuse: bool, shared: int, blocks: int) -> tuple[int, int, float]:
    """Works, steps, and seconds of processor time (that of other programs does not count)."""
    config = SchedulerConfig(
        max_batch_size=16,
        max_num_tokens=8192,
        micro_batches=4,
        num_blocks=blocks,
        tokens_per_block=BLOCK,
        policy=policy,  # type: ignore[arg-type]
        chunked_context=True,
        reuse=reuse,
        max_queue_size=REQUESTS,
        max_seq_len=8192,
    )
    rng = random.Random(1)
    stem = [rng.randrange(128256) for _ in range(shared)]
    prompts = [stem + [rng.randrange(128256) for _ in range(PROMPT - shared)] for _ in range(REQUESTS)]
    begin = time.process_time()
    requests = [Request(number, prompt, OUTPUT) for number, prompt in enumerate(prompts)]
    works, steps = run(Scheduler(config), requests)
    seconds = time.process_time() - begin
    assert all(request.state is State.FINISHED for request in requests)
    return works, steps, seconds


def run(scheduler: Scheduler, requests: list[Request]) -> tuple[int, int]:
    for request in requests:
        scheduler.submit(request)
    in_flight: deque[Step] = deque()
    works = steps = 0
    while True:
        if step := scheduler.schedule():
            in_flight.append(step)
        elif in_flight:
            step = in_flight.popleft()
            emitting = sum(work.emits for work in step.works)
            scheduler.complete(step, [0] * emitting, [False] * emitting)
            works += len(step.works)
            steps += 1
        else:
            return works, steps


if __name__ == "__main__":
    main()
