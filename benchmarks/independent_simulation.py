"""A second simulation of TensorRT-LLM's executor, to hold the first against: it shares no code with `toolkit.inflight`.

    python benchmarks/independent_simulation.py                 # a grid of pipelines, chunks, batches, prompts, rates
    python benchmarks/independent_simulation.py --plan CONFIG [--rate 5] [--what-if limits.max_num_tokens=256]

Written from the executor's source alone, and in its form: one loop that waits, fetches, schedules and enqueues for each
micro-batch in turn. Without reuse of prefixes, under guaranteed_no_evict, with chunked context. What `toolkit.simulate`
says of the same requests stands next to it. With --plan both take the step times of that deployment's plan.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.steptimes.step import StepWork  # what a step computes, in numbers

BLOCK = 32
METRICS = ("TTFT mean", "TTFT P50", "TTFT P99", "TPOT mean", "TPOT P50", "TPOT P99")


@dataclass(eq=False)
class Job:
    """A request and how far it is."""

    due: float
    prompt: int
    output: int
    position: int = 0
    """Positions of the prompt that are enqueued."""
    tokens: list[float] = field(default_factory=list)
    """When each came."""


class Limits(NamedTuple):
    """What the executor may run at once."""

    batch: int
    tokens: int
    stages: int
    blocks: int


class Costs(NamedTuple):
    """How long a step takes in the stages, between them, and on its way back."""

    stages: Callable[[StepWork], list[float]]
    hop: Callable[[StepWork], float]
    back: Callable[[StepWork], float]


def execute(jobs: list[Job], limits: Limits, costs: Costs) -> None:
    """The loop: executionLoop of executorImpl.cpp. Fills in when each job's tokens come."""
    queue = sorted(jobs, key=lambda job: job.due)
    active: list[Job] = []
    in_flight: set[Job] = set()
    slots: list[tuple[float, list[Job]] | None] = [None] * limits.stages
    free = [0.0] * limits.stages
    now = 0.0
    for turn in itertools.cycle(range(limits.stages)):
        if slot := slots[turn]:  # forwardSync
            now, slots[turn] = max(now, slot[0]), None
            for job in slot[1]:
                job.tokens.append(now)
                in_flight.discard(job)
                if len(job.tokens) == job.output:
                    active.remove(job)
        if not active:
            if not queue:
                return
            now = max(now, queue[0].due)
        while queue and queue[0].due <= now and len(active) < limits.batch * limits.stages:  # fetchNewRequests
            active.append(queue.pop(0))
        generations, contexts = micro_batch(fitting(active, limits), in_flight, limits)
        if not generations and not contexts:
            continue
        ready, work = now, counted(generations, contexts)
        for stage, seconds in enumerate(costs.stages(work)):
            ready = free[stage] = max(ready, free[stage]) + seconds
            ready += costs.hop(work)
        end = free[-1] + costs.back(work)
        for job, chunk in contexts:
            job.position += chunk
        answered = [job for job, _ in contexts if job.position == job.prompt] + generations
        in_flight.update(answered)
        slots[turn] = end, answered


def fitting(active: list[Job], limits: Limits) -> list[Job]:
    """GuaranteedNoEvictScheduler of capacityScheduler.cpp: those that generate, then contexts while blocks last."""
    chosen = [job for job in active if job.position == job.prompt]
    left = limits.blocks - sum(blocks(job) for job in chosen)
    for job in active:
        if job.position < job.prompt:
            if len(chosen) == limits.batch * limits.stages or blocks(job) > left:
                break
            chosen.append(job)
            left -= blocks(job)
    return chosen


def blocks(job: Job) -> int:
    return math.ceil((job.prompt + job.output) / BLOCK)


def micro_batch(fit: list[Job], in_flight: set[Job], limits: Limits) -> tuple[list[Job], list[tuple[Job, int]]]:
    """MicroBatchScheduler of microBatchScheduler.cpp, first come first served. Contexts with their chunks."""
    chosen = [job for job in fit if job not in in_flight][: limits.batch]
    generations = [job for job in chosen if job.position == job.prompt]
    room = limits.tokens - len(generations)
    contexts = []
    for job in chosen:
        if job.position < job.prompt:
            rest = job.prompt - job.position
            chunk = rest if rest <= room else room // BLOCK * BLOCK
            room -= chunk
            if chunk:
                contexts.append((job, chunk))
    return generations, contexts


def counted(generations: list[Job], contexts: list[tuple[Job, int]]) -> StepWork:
    chunks = sum(chunk for _, chunk in contexts)
    pairs = sum(chunk * job.position + chunk * (chunk + 1) / 2 for job, chunk in contexts)
    keys = sum(job.prompt + len(job.tokens) for job in generations)
    ends = sum(job.position + chunk == job.prompt for job, chunk in contexts)
    return StepWork(chunks, pairs, len(contexts), len(generations), keys, ends + len(generations))


# What both are asked.


@dataclass
class Linear:
    """Step times for the grid, of `toolkit.simulate`'s protocol: near those of a 70B model over so many stages."""

    stages: int
    one_thread: bool = False

    def slowdown(self, in_flight: int) -> float:
        return 1.0

    def stage_seconds(self, work: StepWork) -> list[float]:
        whole = 28e-3 + 0.1e-3 * work.context_tokens + 2e-9 * work.context_pairs + 5e-8 * work.keys
        return [whole / self.stages * (1.05 if stage == self.stages - 1 else 1) for stage in range(self.stages)]

    def hop_seconds(self, work: StepWork) -> float:
        return 1e-5 + 1e-8 * work.tokens

    def hops(self, work: StepWork) -> list[float]:
        return [self.hop_seconds(work)] * (self.stages - 1)

    def finish_seconds(self, work: StepWork) -> float:
        return 2e-4


Figures = tuple[float, ...]


def theirs(requests: list[tuple[float, int, int]], limits: Limits, times: Any) -> Figures:
    jobs = [Job(*request) for request in requests]
    execute(jobs, limits, Costs(times.stage_seconds, times.hop_seconds, times.finish_seconds))
    first = [job.tokens[0] - job.due for job in jobs]
    later = [(job.tokens[-1] - job.tokens[0]) / (job.output - 1) for job in jobs]
    return figures(first, later)


def ours(requests: list[tuple[float, int, int]], limits: Limits, times: Any) -> Figures:
    from toolkit.inflight import SchedulerConfig
    from toolkit.simulate import simulate
    from toolkit.workload import Planned, Traffic

    config = SchedulerConfig(
        max_batch_size=limits.batch,
        max_num_tokens=limits.tokens,
        micro_batches=limits.stages,
        num_blocks=limits.blocks,
        tokens_per_block=BLOCK,
        policy="guaranteed_no_evict",
        chunked_context=True,
        reuse=False,
        max_queue_size=len(requests),
        max_seq_len=1 << 20,
    )
    planned = [Planned(due, range(n << 32, (n << 32) + prompt), out) for n, (due, prompt, out) in enumerate(requests)]
    run = simulate(Traffic(tuple(planned), 1.0, None, False), config, times)
    assert not run.refused
    first = [sample.ttft_ms / 1e3 for sample in run.samples if sample.ttft_ms is not None]
    later = [sample.tpot_ms / 1e3 for sample in run.samples if sample.tpot_ms is not None]
    assert len(first) == len(later) == len(requests)
    return figures(first, later)


def figures(first: list[float], later: list[float]) -> Figures:
    """METRICS, in ms."""
    return tuple(
        1e3 * of(sorted(values))
        for values in (first, later)
        for of in (statistics.fmean, statistics.median, lambda ordered: ordered[int(len(ordered) * 0.99)])
    )


def poisson(count: int, rate: float, prompt: int, output: int, seed: int = 0) -> list[tuple[float, int, int]]:
    """Requests (due, prompt, output) of half to one and a half times these lengths."""
    rnd, due, result = random.Random(seed), 0.0, []
    for _ in range(count):
        due += rnd.expovariate(rate)
        lengths = [rnd.randint(mean // 2, mean * 3 // 2) for mean in (prompt, output)]
        result.append((due, lengths[0], lengths[1]))
    return result


def grid(count: int) -> None:
    worst = dict.fromkeys(METRICS, 0.0)
    print(f"{count} requests each, of about 64 tokens; independent / toolkit.simulate, ms")
    print("pp tokens batch prompt load   TTFT P50            TTFT P99            TPOT P50          worst")
    began, cases = time.process_time(), 0
    cross = itertools.product((1, 2, 4, 8), (256, 1024, 8192), (4, 16), (128, 1024, 4000), (0.3, 0.7, 1.2))
    for stages, tokens, batch, prompt, load in cross:
        # The load of a server that has its batches full: a request costs its prompt, and its share of the decode steps.
        rate = load / (1e-4 * prompt + 64 * 28e-3 / (batch * (1 if stages == 1 else 2)))
        limits = Limits(batch, tokens, stages, 200 * batch)
        requests, times = poisson(count, rate, prompt, 64), Linear(stages)
        pair = theirs(requests, limits, times), ours(requests, limits, times)
        apart = [abs(b / a - 1) for a, b in zip(*pair, strict=True)]
        worst = {name: max(worst[name], value) for name, value in zip(METRICS, apart, strict=True)}
        cases += 1
        shown = "   ".join(f"{pair[0][i]:8.1f} {pair[1][i]:8.1f}" for i in (1, 2, 4))
        print(f"{stages:2} {tokens:6} {batch:5} {prompt:6} {load:4.1f}   {shown}   {max(apart):.2%}")
    print(f"{cases} cases, {time.process_time() - began:.0f} s; largest difference of each figure:")
    print(", ".join(f"{name} {value:.2%}" for name, value in worst.items()))


def plan(file: Path, rates: list[float], changes: list[str]) -> None:
    from toolkit.plan.predict import predict
    from toolkit.plan.what_if import load_changed
    from toolkit.workload import traffic_of

    deployment = load_changed(file, settings=changes)
    prediction = predict(deployment)
    config, times, traffic = prediction.scheduling, prediction.times, traffic_of(deployment)
    limits = Limits(config.max_batch_size, config.max_num_tokens, config.micro_batches, config.num_blocks)
    for rate in rates or [traffic.rate or 1.0]:
        requests = [(planned.due, len(planned.prompt), planned.output_tokens) for planned in traffic.at(rate).requests]
        for who, simulated in (("independent", theirs), ("toolkit", ours)):
            values = simulated(requests, limits, times)
            shown = "  ".join(f"{name} {value:7.1f}" for name, value in zip(METRICS, values, strict=True))
            print(f"{rate:5.2f}/s  {who:11}  {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--rate", type=float, action="append", default=[])
    parser.add_argument("--what-if", action="append", default=[])
    options = parser.parse_args()
    if options.plan:
        plan(options.plan, options.rate, options.what_if)
    else:
        grid(options.requests)


if __name__ == "__main__":
    main()
