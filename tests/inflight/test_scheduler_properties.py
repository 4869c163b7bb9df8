"""What must hold in every trace; FakeEngine checks it at every move."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.inflight.fake_engine import VOCABULARY, FakeEngine
from toolkit.errors import Busy, InputRefused
from toolkit.inflight import Request, SchedulerConfig

pytestmark = pytest.mark.thorough

# Texts that begin alike, so that blocks are shared.
STEM = [(7 * position) % VOCABULARY for position in range(24)]
prompts = st.builds(
    lambda length, tail: STEM[:length] + tail,
    st.integers(0, len(STEM)),
    st.lists(st.integers(0, 2), max_size=4),
)


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    return SchedulerConfig(
        max_batch_size=draw(st.integers(1, 5)),
        max_num_tokens=draw(st.integers(1, 32)),
        micro_batches=draw(st.integers(1, 3)),
        num_blocks=draw(st.integers(1, 16)),
        tokens_per_block=draw(st.integers(1, 5)),
        policy=draw(st.sampled_from(["guaranteed_no_evict", "max_utilization"])),
        chunked_context=draw(st.booleans()),
        reuse=draw(st.booleans()),
        max_queue_size=draw(st.integers(1, 8)),
        max_seq_len=draw(st.integers(2, 40)),
    )


class AnyTrace(RuleBasedStateMachine):
    @initialize(config=configs())
    def start(self, config: SchedulerConfig) -> None:
        self.engine = FakeEngine(config)

    @rule(prompt=prompts, max_tokens=st.integers(0, 12))
    def submit(self, prompt: list[int], max_tokens: int) -> None:
        stats = self.engine.scheduler.stats()
        queued = max(0, stats.active - stats.max)
        try:
            self.engine.submit(Request(len(self.engine.requests), prompt, max_tokens))
        except InputRefused:
            assert stats == self.engine.scheduler.stats()
        except Busy:
            assert queued >= self.engine.config.max_queue_size
            assert stats == self.engine.scheduler.stats()
        else:
            assert queued < self.engine.config.max_queue_size

    @rule()
    def launch(self) -> None:
        self.engine.launch()

    @precondition(lambda self: self.engine.in_flight)
    @rule()
    def land(self) -> None:
        self.engine.land()

    @rule(turns=st.integers(1, 6))
    def go_on(self, turns: int) -> None:
        for _ in range(turns):
            while self.engine.launch():
                pass
            if self.engine.in_flight:
                self.engine.land()

    @precondition(lambda self: self.engine.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(self.engine.requests)))

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.drain()
            assert self.engine.scheduler.stats().blocks_used == 0


TestAnyTrace = AnyTrace.TestCase
TestAnyTrace.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@st.composite
def crowded_configs(draw: st.DrawFn) -> SchedulerConfig:
    """Room for one long sequence or a little more, so that those that run fight for blocks."""
    tokens_per_block, chunked = draw(st.integers(1, 5)), draw(st.booleans())
    return SchedulerConfig(
        max_batch_size=draw(st.integers(2, 5)),
        max_num_tokens=draw(st.integers(tokens_per_block, 20)) if chunked else draw(st.integers(40, 60)),
        micro_batches=draw(st.integers(1, 3)),
        num_blocks=-(-40 // tokens_per_block) + draw(st.integers(0, 8)),
        tokens_per_block=tokens_per_block,
        policy=draw(st.sampled_from(["guaranteed_no_evict", "max_utilization"])),
        chunked_context=chunked,
        reuse=draw(st.booleans()),
        max_queue_size=100,
        max_seq_len=40,
    )


@st.composite
def chunking_configs(draw: st.DrawFn) -> SchedulerConfig:
    """Steps of a block or two: a prompt is in every micro-batch at once, also when it is cancelled or paused."""
    block = draw(st.integers(1, 3))
    return SchedulerConfig(
        max_batch_size=draw(st.integers(1, 4)),
        max_num_tokens=draw(st.integers(block, 2 * block + 1)),
        micro_batches=draw(st.integers(2, 4)),
        num_blocks=-(-40 // block) + draw(st.integers(0, 8)),
        tokens_per_block=block,
        policy=draw(st.sampled_from(["guaranteed_no_evict", "max_utilization"])),
        chunked_context=True,
        reuse=draw(st.booleans()),
        max_queue_size=100,
        max_seq_len=40,
    )


arrivals = st.tuples(
    prompts.filter(bool),
    st.integers(1, 12),  # max_tokens
    st.integers(0, 2),  # steps until the next request comes
    st.one_of(st.none(), st.none(), st.integers(0, 30)),  # steps until it is cancelled
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(crowded_configs(), chunking_configs()), st.lists(arrivals, min_size=6, max_size=16))
def test_a_crowd(config: SchedulerConfig, crowd: list[tuple[list[int], int, int, int | None]]) -> None:
    engine = FakeEngine(config)
    cancellations: list[tuple[int, Request]] = []
    for number, (prompt, max_tokens, gap, patience) in enumerate(crowd):
        request = Request(number, prompt, max_tokens)
        engine.submit(request)
        if patience is not None:
            cancellations.append((engine.steps + patience, request))
        for _ in range(gap):
            run_one_step(engine)
    while engine.scheduler.stats().active:
        for due, request in cancellations:
            if due <= engine.steps:
                engine.cancel(request)
        assert run_one_step(engine), "requests are left but nothing can run"
    engine.drain()


def run_one_step(engine: FakeEngine) -> bool:
    """Schedule one step, or complete one when no more can be scheduled. False if there is neither."""
    if engine.launch():
        return True
    if engine.in_flight:
        engine.land()
        return True
    return not engine.scheduler.stats().active
