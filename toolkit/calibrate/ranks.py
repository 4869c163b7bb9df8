"""The ranks of a rehearsal, computing given steps one at a time, with a clock beside each of them.

Every rank is a process of its own, as in service, but without Triton. The clock is CLOCK_MONOTONIC, which is
one for all processes of a machine, so times of different ranks can be subtracted.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
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

Span = tuple[int, int]
"""Of one rank and step: begin and end by the clock, nanoseconds."""
REPEATS = (5, 30)
"""How often each step is timed: at least, and at most where they are short."""
LONG = 100
"""A step that takes more than this part of the budget is looked at twice before it is left out for that."""


class Lap(NamedTuple):
    """One step, once. Seconds."""

    stages: list[float]
    """From when a stage had its first message, and the stage before it was done, to when its last rank was done.
    The first stage begins when rank 0 begins to encode the step."""
    hops: float
    """Between all stages together."""
    finish: float
    """From the end of the last stage to when rank 0 had chosen the tokens."""


def run(
    settings: EngineSettings,
    plans: Sequence[StepPlan],
    budget_s: float,
    tell: Callable[[int, int], None],
    rank_class: type[Rank] = Rank,
) -> list[list[Lap]]:
    """The laps of each step; none of those that the budget has no room for, which are the longest ones.

    `tell` is called with (steps done, steps in all). Raises ToolkitError when a rank ends before its time.
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
    """The next message of a rank. When it has ended instead, the error of whichever rank has said why."""
    try:
        message = pipes[rank].recv()
    except EOFError:
        message = ToolkitError(f"rank {rank} of the rehearsal has ended", hint="Its own words are above.")
        for pipe in pipes:
            with contextlib.suppress(EOFError):
                while pipe.poll():
                    said = pipe.recv()
                    message = said if isinstance(said, ToolkitError) else message
    if isinstance(message, ToolkitError):
        raise message
    return message


def _lap(stages: list[list[Span]], chosen: int) -> Lap:
    at, seconds, hops = stages[0][0][0], list[int](), 0
    # A rank has sent its result before it comes to its end: on busy cores long before. Its stage is done at the latest
    # when all ranks of the next one have begun, and then no stage is left without time.
    following = [*(max(begin for begin, _ in stage) for stage in stages[1:]), chosen]
    for stage, latest in zip(stages, following, strict=True):
        begin = max(at, min(begin for begin, _ in stage))
        end = min(max(end for _, end in stage), latest)
        hops += begin - at
        seconds.append(end - begin)
        at = end
    return Lap([one * 1e-9 for one in seconds], hops * 1e-9, (chosen - at) * 1e-9)


@contextlib.contextmanager
def _started(
    settings: EngineSettings, plans: Sequence[StepPlan], budget_s: float, rank_class: type[Rank]
) -> Iterator[list[Connection]]:
    """A process a rank and the pipe from it; none is left when the block ends, however it ends."""
    spawn, ranks = multiprocessing.get_context("spawn"), settings.mapping.ranks
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pipes, processes = list[Connection](), list[BaseProcess]()
    # Ctrl-C goes to all processes of a terminal. Ranks keep it blocked, as they are started with it blocked; it comes
    # to this process alone, which ends them. (The tracker would unblock it, were it started by the first of them.)
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
        for process in processes:  # all of them before one can tell that it has lost another
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
    """What a process does. Sends what it has measured, or the ToolkitError why it could not."""
    try:
        me = rank_class(settings, rank, port)
    except ToolkitError as error:
        return pipe.send(error)
    pipe.send(_follow(me)) if rank else _lead(me, plans, budget_s, pipe)
    me.peers.leave()


def _follow(me: Rank) -> list[Span]:
    """What `toolkit.engine.rehearsal.worker.work` does, with a clock: from the message's arrival to the result sent."""
    spans = list[Span]()
    while not torch.equal((message := me.peers.steps.next())[: len(STOP)], STOP):
        begin = time.monotonic_ns()
        me.compute(message)
        spans.append((begin, time.monotonic_ns()))
    return spans


class _Leader:
    """Rank 0: has every step computed, and takes note of when."""

    def __init__(self, me: Rank, plans: Sequence[StepPlan], pipe: Connection) -> None:
        self.me, self.pipe, self.scheduling = me, pipe, me.settings.scheduling
        self.steps = [plan.step(self.scheduling, me.settings.model["vocab_size"]) for plan in plans]
        self.spans, self.order = list[Span](), list[tuple[int, int, bool]]()

    def lap(self, index: int, total: int, counts: bool = True) -> float:
        """Compute a step to its end; its seconds."""
        begin = time.monotonic_ns()
        own = self.me.compute(encode(self.steps[index], self.scheduling.tokens_per_block))
        self.spans.append((begin, time.monotonic_ns()))
        choose(self.me, sum(work.emits for work in self.steps[index].works), own)
        chosen = time.monotonic_ns()
        self.order.append((index, chosen, counts))
        self.pipe.send((len(self.order), max(total, len(self.order))))
        return (chosen - begin) * 1e-9


def _lead(me: Rank, plans: Sequence[StepPlan], budget_s: float, pipe: Connection) -> None:
    """Every step once to warm up and to see what it costs; then round after round of all that the budget allows."""
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
    """Which of some steps fit into a budget, the longest left out but never all, and how often each can be timed."""
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
