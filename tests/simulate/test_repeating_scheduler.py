"""A scheduler that repeats steps (`RepeatingScheduler`) behaves at every move like one that never does."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.inflight.test_scheduler_properties import chunking_configs, configs, crowded_configs
from tests.inflight.traces import CONFIG, complete, described
from toolkit.errors import Busy, InputRefused
from toolkit.inflight import Request, SchedulerConfig, Step
from toolkit.simulate.repetition import RepeatingScheduler

MOVES = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 20), st.integers(1, 30)),
    st.tuples(st.just("schedule")),
    *[st.tuples(st.just("turn"), st.integers(1, 12))] * 3,
    st.tuples(st.just("cancel"), st.integers(0, 30)),
)


class Driven:
    """A scheduler, its requests and its steps in flight; takes the shortcut where it may."""

    def __init__(self, config: SchedulerConfig, shortcut: bool) -> None:
        self.scheduler, self.shortcut = RepeatingScheduler(config), shortcut
        self.repeating: set[Step] = set()
        self.requests: list[Request] = []
        self.in_flight: deque[Step] = deque()

    def submit(self, length: int, max_tokens: int) -> None:
        number = len(self.requests)
        request = Request(number, range(100 * number, 100 * number + length), max_tokens)
        try:
            self.scheduler.submit(request)
        except (Busy, InputRefused):
            return
        self.requests.append(request)

    def schedule(self) -> None:
        while step := self.scheduler.schedule():
            self.in_flight.append(step)

    def turn(self, times: int) -> None:
        """So often: the oldest step completes, and whatever can be scheduled is."""
        for _ in range(times if self.in_flight else 0):
            step = self.in_flight.popleft()
            if self.shortcut and (self.scheduler.repeat(step) or self.scheduler.change(step) is not None):
                self.in_flight.append(step)
                self.repeating.add(step)
            else:
                self.repeating.discard(step)
                count = sum(work.emits for work in step.works)
                self.scheduler.complete(step, [0] * count, [False] * count)
            self.schedule()
            if not self.in_flight:
                return

    def cancel(self, number: int) -> None:
        if number < len(self.requests):
            self.scheduler.cancel(self.requests[number])

    @property
    def state(self) -> list:
        """Everything that has to be the same: gauges, and each request that is not in a repeated step."""
        steps = [described(step) for step in self.in_flight if step not in self.repeating]
        lazy = {work.request for step in self.in_flight if step in self.repeating for work in step.works}
        requests = [(r.id, r.state, r.tokens, r.output, r.scheduled, r.computed, r.blocks) for r in self.requests]
        return [self.scheduler.stats(), self.scheduler.pauses, [r.blocks for r in self.requests], steps, lazy, requests]


def check_same(plain: Driven, short: Driven) -> None:
    gauges, pauses, blocks, steps, _, requests = plain.state
    theirs, their_pauses, their_blocks, their_steps, lazy, their_requests = short.state
    assert (gauges, pauses, blocks) == (theirs, their_pauses, their_blocks)
    unsettled = {request.id for request in lazy}
    assert [r for r in requests if r[0] not in unsettled] == [r for r in their_requests if r[0] not in unsettled]
    assert all(step in steps for step in their_steps)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(configs(), crowded_configs(), chunking_configs()), st.lists(MOVES, max_size=60))
def test_the_shortcut_changes_nothing(config: SchedulerConfig, moves: list[tuple]) -> None:
    plain, short = Driven(config, False), Driven(config, True)
    for name, *values in moves:
        for driven in (plain, short):
            getattr(driven, name)(*values)
        check_same(plain, short)
    for driven in (plain, short):
        driven.schedule()
        while driven.in_flight:
            driven.turn(1)
    check_same(plain, short)
    assert short.scheduler.stats().blocks_used == 0


def start(config: SchedulerConfig, **sizes: tuple[list[int], int]) -> tuple[RepeatingScheduler, dict[str, Request]]:
    scheduler = RepeatingScheduler(config)
    requests = {name: Request(name, prompt, most) for name, (prompt, most) in sizes.items()}
    scheduler.submit(*requests.values())
    return scheduler, requests


def test_a_step_of_generations_comes_again_until_one_ends():
    """Blocks of 4. a has 3 tokens and may generate 6, b has 5 and may generate 4. After the prompts b lacks three
    tokens: its step comes again twice, and then ends b. The position 4 of a begins a block."""
    scheduler, requests = start(replace(CONFIG, reuse=False, micro_batches=1),
                                a=([1, 2, 3], 6), b=([4, 5, 6, 7, 8], 4))  # fmt: skip
    prompts = scheduler.schedule()
    assert not scheduler.repeat(prompts), "a step with prompts in it"
    complete(scheduler, prompts, 0, 0)
    step = scheduler.schedule()
    assert [scheduler.repeat(step) for _ in range(3)] == [True, True, False]
    assert scheduler.stats().iterations == 4
    assert [len(requests[name].blocks) for name in "ab"] == [2, 2]
    complete(scheduler, step, 0, 0)
    assert [len(requests[name].output) for name in "ab"] == [4, 4]
    assert requests["b"].state.name == "FINISHED" and requests["a"].scheduled == 6
    assert not scheduler.repeat(step), "a step that is not in flight"


def test_a_prompt_joins_a_repeated_step_and_its_first_token_ends_the_repetition():
    """Steps of 6 tokens: of b's 7 go 4 next to a's token, a whole block, and then 3."""
    config = replace(CONFIG, reuse=False, micro_batches=1, max_num_tokens=6)
    scheduler, requests = start(config, a=([1], 9))
    complete(scheduler, scheduler.schedule(), 0)
    step = scheduler.schedule()
    assert scheduler.repeat(step) and not step.context
    scheduler.submit(Request("b", [1] * 7, 9))
    chunks = []
    while scheduler.repeat(step):
        chunks += [(work.request.id, work.start, work.length, work.emits) for work in step.context]
    assert chunks == [("b", 0, 4, False), ("b", 4, 3, True)]
    complete(scheduler, step, 0, 0)
    assert [len(requests["a"].output), requests["a"].scheduled] == [5, 5]
    assert [work.request.id for work in scheduler.schedule().works] == ["a", "b"]


def test_a_full_step_is_repeated_while_others_wait():
    scheduler, _ = start(replace(CONFIG, reuse=False, micro_batches=1), a=([1], 9), b=([1], 9), c=([1], 9))
    complete(scheduler, scheduler.schedule(), 0, 0)
    step = scheduler.schedule()
    assert scheduler.repeat(step) and len(step.works) == 2
