"""Runs the ranks of a rehearsal on chosen steps, one step at a time, and times each rank.

Every rank is a process of its own, as in service, but without Triton. The clock is CLOCK_MONOTONIC. All processes of a
machine share it, so times of different ranks can be subtracted.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.calibrate.grid import StepPlan
from toolkit.engine.rehearsal.batch import STOP, encode
from toolkit.engine.rehearsal.worker import Rank
from toolkit.engine.settings import EngineSettings
from toolkit.errors import ToolkitError
from toolkit.processes import free_port

Span = tuple[int, int]
"""When a rank began and ended a step, in nanoseconds."""
REPEATS = (5, 30)
"""How often each step is timed: at least, and, if it is short, at most."""
LONG = 100
"""A step that takes more than budget / LONG is timed twice before it is skipped as too long."""


class Lap(NamedTuple):
    """One step, once. Seconds."""

    stages: list[float]
    """For each stage. It begins when it has its first message and the stage before it is done. It ends with its last
    rank. The first stage begins when rank 0 begins to encode the step."""
    hops: float
    """Between all stages together."""
    finish: float
    """From the end of the last stage until rank 0 has chosen the tokens."""


def run(
    settings: EngineSettings,
    plans: Sequence[StepPlan],
    budget_s: float,
    tell: Callable[[int, int], None],
    rank_class: type[Rank] = Rank,
) -> list[list[Lap]]:
    """The laps of each step. The longest steps have none if they do not fit the budget.

    `tell` is called with (steps done, steps in all). Raises ToolkitError when a rank ends early.
    """
    with _started(settings, plans, budget_s, rank_class) as pipes:
        while isinstance(message := _next(pipes, 0), tuple):
            tell(*message)
        order, leader = message
        spans = [leader, *(_next(pipes, rank) for rank in settings.mapping.ranks[1:])]
    laps: list[list[Lap]] = [[] for _ in plans]
    groups = [settings.mapping.tp_group(stage) for stage in range(settings.mapping.pp)]
    for index, (plan, chosen, counts) in enumerate(order):
        if counts:
            laps[plan].append(_lap([[spans[rank][index] for rank in group] for group in groups], chosen))
    return laps


def _next(pipes: Sequence[Connection], rank: int) -> Any:
    """The next message of a rank. If it has ended, raises the error of the rank that says why."""
    try:
        message = pipes[rank].recv()
    except EOFError:
        message = ToolkitError(f"rank {rank} of the rehearsal has ended", hint="Its messages are above.")
        for pipe in pipes:
            with contextlib.suppress(EOFError):
                while pipe.poll():
                    last = pipe.recv()
                    message = last if isinstance(last, ToolkitError) else message
    if isinstance(message, ToolkitError):
        raise message
    return message


def _lap(stages: list[list[Span]], chosen: int) -> Lap:
    at, stage_times, hops = stages[0][0][0], list[int](), 0
    # A rank sends its result before it ends its step: on busy cores long before. Its stage is done at the latest when
    # all ranks of the next stage have begun. So every stage gets some time.
    following = [*(max(begin for begin, _ in stage) for stage in stages[1:]), chosen]
    for stage, latest in zip(stages, following, strict=True):
        begin = max(at, min(begin for begin, _ in stage))
        end = min(max(end for _, end in stage), latest)
        hops += begin - at
        stage_times.append(end - begin)
        at = end
    return Lap([nanoseconds * 1e-9 for nanoseconds in stage_times], hops * 1e-9, (chosen - at) * 1e-9)


@contextlib.contextmanager
def _started(
    settings: EngineSettings, plans: Sequence[StepPlan], budget_s: float, rank_class: type[Rank]
) -> Iterator[list[Connection]]:
    """Start a process for each rank. Gives the pipes from them. When the block ends, no process is left."""
    spawn, ranks = multiprocessing.get_context("spawn"), settings.mapping.ranks
    port, pipes, processes = free_port(), list[Connection](), list[BaseProcess]()
    # Ctrl-C goes to all processes of a terminal. Ranks are started with it blocked, and keep it blocked. So only this
    # process gets it, and ends them. (The tracker would unblock it if the first rank started it.)
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for rank in ranks:
            ours, theirs = spawn.Pipe(duplex=False)
            arguments = (settings, rank, port, plans, budget_s, rank_class, theirs)
            process: BaseProcess = spawn.Process(target=_be_rank, args=arguments, daemon=True)
            process.start()
            processes.append(process)
            pipes.append(ours)
            theirs.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield pipes
        for process in processes:
            process.join(30)
    finally:
        for process in processes:  # all of them, before one can report that it has lost another
            process.kill()
        for process in processes:
            process.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be_rank(
    settings: EngineSettings,
    rank: int,
    port: int,
    plans: Sequence[StepPlan],
    budget_s: float,
    rank_class: type[Rank],
    pipe: Connection,
) -> None:
    """The work of a rank's process. Sends its times, or the ToolkitError why there are none."""
    try:
        me = rank_class(settings, rank, port)
    except ToolkitError as error:
        return pipe.send(error)
    pipe.send(_follow(me)) if rank else _lead(me, plans, budget_s, pipe)
    me.peers.leave()


def _follow(me: Rank) -> list[Span]:
    """As `toolkit.engine.rehearsal.worker.work`, but timed: from the arrival of a message until the result is sent."""
    spans = list[Span]()
    while not torch.equal((message := me.peers.steps.next())[: len(STOP)], STOP):
        begin = time.monotonic_ns()
        me.compute(message)
        spans.append((begin, time.monotonic_ns()))
    return spans


class _Leader:
    """Rank 0: has the ranks compute every step, and notes the times."""

    def __init__(self, me: Rank, plans: Sequence[StepPlan], pipe: Connection) -> None:
        self.me, self.pipe, self.scheduling = me, pipe, me.settings.scheduling
        self.steps = [plan.step(self.scheduling, me.settings.model["vocab_size"]) for plan in plans]
        self.spans, self.order = list[Span](), list[tuple[int, int, bool]]()

    def lap(self, index: int, total: int, counts: bool = True) -> float:
        """Compute a step to its end. Returns its seconds."""
        begin = time.monotonic_ns()
        own = self.me.compute(encode(self.steps[index], self.scheduling.tokens_per_block))
        self.spans.append((begin, time.monotonic_ns()))
        choose(self.me, sum(work.emits for work in self.steps[index].works), own)
        chosen = time.monotonic_ns()
        self.order.append((index, chosen, counts))
        self.pipe.send((len(self.order), max(total, len(self.order))))
        return (chosen - begin) * 1e-9


def _lead(me: Rank, plans: Sequence[StepPlan], budget_s: float, pipe: Connection) -> None:
    """Compute every step once, to warm up and to see its cost. Then time those that fit the budget, in rounds."""
    leader = _Leader(me, plans, pipe)
    seconds, total = list[float](), len(plans) * (1 + REPEATS[0])
    for index in range(len(plans)):
        seconds.append(leader.lap(index, total, counts=False))
        if seconds[-1] > budget_s / LONG:  # perhaps because another program had the cores
            seconds[-1] = min(seconds[-1], leader.lap(index, total, counts=False))
    chosen, rounds = affordable(seconds, budget_s - sum(seconds))
    total = len(leader.order) + len(chosen) * rounds
    for _ in range(rounds):
        for index in chosen:
            leader.lap(index, total)
    pipe.send([leader.order, leader.spans])


def affordable(seconds: Sequence[float], budget_s: float) -> tuple[list[int], int]:
    """(the steps that fit a budget, how often each can be timed). The longest steps are skipped, but never all."""
    least, most = REPEATS
    used, chosen = 0.0, list[int]()
    for index in sorted(range(len(seconds)), key=seconds.__getitem__):
        if chosen and used + least * seconds[index] > budget_s:
            break
        used += least * seconds[index]
        chosen.append(index)
    return sorted(chosen), max(least, min(most, int(budget_s * least / used)))


@torch.inference_mode()
def choose(me: Rank, rows: int, own: Tensor | None) -> list[int]:
    """The greedy tokens of a step, as the engine's rank 0 chooses them."""
    mapping, size = me.settings.mapping, me.settings.model["vocab_size"]
    shape = torch.Size((rows, -(-size // mapping.tp)))
    shares = [me.peers.logits[peer].next(shape) if peer else own for peer in mapping.tp_group(mapping.pp - 1)]
    return torch.cat([share for share in shares if share is not None], 1)[:, :size].argmax(1).tolist()
