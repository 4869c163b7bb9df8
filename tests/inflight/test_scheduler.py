"""The decisions of the scheduler against traces worked out by hand, and each way to refuse or end a request."""

from dataclasses import replace

import pytest

from tests.inflight.traces import CONFIG, complete, described, start
from toolkit.errors import Busy, InputRefused
from toolkit.inflight import Request, Scheduler, State, Stats
from toolkit.inflight.blocks import BlockPool


def test_two_micro_batches_chunks_reservation_and_reuse() -> None:
    stem = list(range(100, 110))
    scheduler, requests = start(CONFIG, a=(stem, 3), b=([*stem[:8], 1, 2], 2), c=([7, 8, 9], 2))

    # a needs 4 blocks in the end (13 positions) and 3 now; its first 8 positions fill the step.
    one = scheduler.schedule()
    assert described(one) == (0, [("a", 0, 8, False, [0, 1, 2])], [])
    # The rest of a follows at once. b has the same first 8 tokens, but nobody has computed them yet. It needs 3 blocks,
    # now and in the end, and the step has room for one block of it.
    two = scheduler.schedule()
    assert described(two) == (1, [("a", 8, 2, True, [0, 1, 2]), ("b", 0, 4, False, [3, 4, 5])], [])
    assert scheduler.schedule() is None  # both slots are in flight
    assert scheduler.stats() == Stats(
        active=3,
        max=4,
        scheduled=2,
        context=2,
        context_tokens=14,
        waiting=1,
        paused=0,
        iterations=2,
        blocks_max=8,
        blocks_free=2,
        blocks_used=6,
        blocks_reused=0,
        micro_batch=1,
    )

    # The step has room for c, which needs 2 blocks. 2 are free, but one is promised to a.
    complete(scheduler, one)
    three = scheduler.schedule()
    assert described(three) == (0, [("b", 4, 6, True, [3, 4, 5])], [])
    complete(scheduler, two, 50)
    four = scheduler.schedule()
    assert described(four) == (1, [], [("a", 10, 1, True, [0, 1, 2])])
    complete(scheduler, three, 60)
    five = scheduler.schedule()
    assert described(five) == (0, [], [("b", 10, 1, True, [3, 4, 5])])
    complete(scheduler, four, 51)
    six = scheduler.schedule()
    assert described(six) == (1, [], [("a", 11, 1, True, [0, 1, 2])])

    # b ends. Its blocks were never shared (a published that prefix first), so they are the next to be used.
    complete(scheduler, five, 61)
    assert requests["b"].state is State.FINISHED
    seven = scheduler.schedule()
    assert described(seven) == (0, [("c", 0, 3, True, [3])], [])

    # a ends with 3 full blocks in the cache: 10 tokens of prompt, 2 of output (the third is not computed).
    complete(scheduler, six, 52)
    assert requests["a"].output == [50, 51, 52]
    assert requests["a"].state is State.FINISHED
    assert scheduler.schedule() is None  # slot 1 has nothing to run, slot 0 is in flight
    complete(scheduler, seven, 70)

    # d equals the cached 12 tokens but must compute one of its own: 2 blocks. e goes on from them: 3 blocks.
    d, e = Request("d", [*stem, 50, 51], 1), Request("e", [*stem, 50, 51, 52], 1)
    scheduler.submit(d)
    scheduler.submit(e)
    eight = scheduler.schedule()
    assert described(eight) == (0, [("d", 8, 4, True, [0, 1, 4])], [("c", 3, 1, True, [3])])
    nine = scheduler.schedule()
    assert described(nine) == (1, [("e", 12, 1, True, [0, 1, 2, 5])], [])
    assert (d.reused_blocks, e.reused_blocks, scheduler.stats().blocks_reused) == (2, 3, 5)
    complete(scheduler, eight, 80, 71)
    complete(scheduler, nine, 90)
    assert [request.output for request in (requests["c"], d, e)] == [[70, 71], [80], [90]]
    assert scheduler.stats().blocks_free == 8


def test_max_utilization_pauses_the_youngest_and_computes_it_again() -> None:
    config = replace(CONFIG, micro_batches=1, num_blocks=4, tokens_per_block=2, reuse=False)
    config = replace(config, policy="max_utilization")
    # 7 positions each in the end, so 4 blocks each; 2 each at first.
    scheduler, requests = start(config, a=([1, 2, 3], 4), b=([4, 5, 6], 4))
    b = requests["b"]

    step = scheduler.schedule()
    assert described(step) == (0, [("a", 0, 3, True, [0, 1]), ("b", 0, 3, True, [2, 3])], [])
    complete(scheduler, step, 10, 20)
    step = scheduler.schedule()
    assert described(step) == (0, [], [("a", 3, 1, True, [0, 1]), ("b", 3, 1, True, [2, 3])])
    complete(scheduler, step, 11, 21)

    # Both need a third block and none is left: b gives way. One block stays free, too few for b's 5 tokens.
    step = scheduler.schedule()
    assert described(step) == (0, [], [("a", 4, 1, True, [0, 1, 2])])
    assert (b.state, b.blocks, b.computed) == (State.PAUSED, [], 0)
    stats = scheduler.stats()
    assert (stats.active, stats.scheduled, stats.waiting, stats.paused) == (2, 1, 1, 1)
    complete(scheduler, step, 12)
    step = scheduler.schedule()
    assert described(step) == (0, [], [("a", 5, 1, True, [0, 1, 2])])
    complete(scheduler, step, 13)
    assert requests["a"].state is State.FINISHED

    # b comes back with 3 tokens of prompt and 2 of output, and goes on with its third.
    step = scheduler.schedule()
    assert step
    assert [(work.request.id, work.start, work.length, work.emits) for work in step.context] == [("b", 0, 5, True)]
    complete(scheduler, step, 22)
    step = scheduler.schedule()
    assert step
    assert [(work.request.id, work.start, work.length) for work in step.generation] == [("b", 5, 1)]
    complete(scheduler, step, 23)
    assert b.output == [20, 21, 22, 23]
    assert (scheduler.schedule(), scheduler.stats().active) == (None, 0)


def test_the_end_of_the_prefix_unused_for_longest_is_evicted_first() -> None:
    config = replace(CONFIG, num_blocks=4, tokens_per_block=2, micro_batches=1)
    old, new, other = [1, 2, 3, 4, 5], [6, 7, 8], [9, 9, 9]
    for prompt in (old, new, other):
        assert len(prompt) % 2  # the last block of each is not full, and not cached
    scheduler = Scheduler(config)

    def reused(prompt: list[int]) -> int:
        request = Request("any", prompt, 1)
        scheduler.submit(request)
        complete(scheduler, scheduler.schedule(), 0)
        return request.reused_blocks

    assert reused(old) == 0  # leaves 2 cached blocks
    assert reused(new) == 0  # leaves 1: 3 cached, 1 with nothing in it
    assert reused(other) == 0  # takes that one and the end of `old`
    assert reused(new) == 1
    assert reused(old) == 1


def test_a_long_prompt_is_not_overtaken() -> None:
    config = replace(CONFIG, micro_batches=1, chunked_context=False)
    scheduler, _ = start(config, a=([1] * 4, 2), b=([2] * 8, 2), c=([3], 2))
    step = scheduler.schedule()
    assert described(step) == (0, [("a", 0, 4, True, [0])], [])  # b does not fit in 4 positions; c would
    complete(scheduler, step, 0)
    step = scheduler.schedule()
    assert described(step) == (0, [], [("a", 4, 1, True, [0, 1])])
    complete(scheduler, step, 0)
    # Block 0 is kept in the cache for longer than those that hold nothing.
    assert described(scheduler.schedule()) == (0, [("b", 0, 8, True, [1, 2])], [])


def test_a_context_that_has_begun_is_not_overtaken() -> None:
    scheduler, _ = start(replace(CONFIG, max_num_tokens=4), short=([2] * 3, 3), long=([1] * 12, 1))
    steps = [scheduler.schedule(), scheduler.schedule()]
    assert described(steps[0]) == (0, [("short", 0, 3, True, [0])], [])
    assert described(steps[1]) == (1, [("long", 0, 4, False, [1, 2, 3])], [])
    scheduler.submit(Request("late", [3, 3], 1))
    complete(scheduler, steps[0], 9)
    # 3 positions are left: no whole block for `long`, and `late`, which would fit, comes after it.
    assert described(scheduler.schedule()) == (0, [], [("short", 3, 1, True, [0])])
    complete(scheduler, steps[1])
    assert described(scheduler.schedule()) == (1, [("long", 4, 4, False, [1, 2, 3])], [])


def test_an_end_by_the_engine_and_an_end_by_max_tokens() -> None:
    scheduler, requests = start(CONFIG, a=([1, 2], 5), b=([3], 1))
    step = scheduler.schedule()
    assert step
    scheduler.complete(step, [8, 9], [True, False])
    assert [(r.state, r.output) for r in requests.values()] == [(State.FINISHED, [8]), (State.FINISHED, [9])]


@pytest.mark.parametrize("moment", ["waiting", "in flight", "ready", "paused", "finished", "cancelled"])
def test_cancel(moment: str) -> None:
    config = replace(CONFIG, num_blocks=2, tokens_per_block=2, micro_batches=1, policy="max_utilization")
    scheduler, requests = start(config, older=([1, 2], 2), it=([3, 4], 2))
    it, older = requests["it"], requests["older"]
    if moment != "waiting":
        step = scheduler.schedule()
        if moment == "in flight":
            scheduler.cancel(it)
            assert it.state is State.CANCELLED
            assert scheduler.stats().blocks_used == 2  # until its step completes
        complete(scheduler, step, 5, 6)
    if moment in ("paused", "finished"):
        step = scheduler.schedule()
        assert it.state is State.PAUSED
        if moment == "finished":
            complete(scheduler, step, 7)
            complete(scheduler, scheduler.schedule(), 8)
    if moment == "cancelled":
        scheduler.cancel(it)
    scheduler.cancel(it)
    assert it.state is (State.FINISHED if moment == "finished" else State.CANCELLED)
    assert it.blocks == []
    while older.state is not State.FINISHED:
        if moment != "paused" or scheduler.stats().scheduled == 0:
            step = scheduler.schedule()
        complete(scheduler, step, 7)
    assert it.output == {"waiting": [], "in flight": [], "finished": [6, 8]}.get(moment, [6])
    stats = scheduler.stats()
    assert (stats.active, stats.paused, stats.blocks_used) == (0, 0, 0)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "change", "message"),
    [
        (0, 1, {}, "0 tokens of prompt, max_tokens 1"),
        (1, 0, {}, "1 tokens of prompt, max_tokens 0"),
        (19, 2, {}, "prompt + max_tokens is 21 tokens; max_seq_len allows 20"),
        (17, 1, {"num_blocks": 4}, "prompt + max_tokens is 18 tokens; the KV cache allows 16"),
        (9, 1, {"chunked_context": False}, "context in one step is 9 tokens; max_num_tokens allows 8"),
        (7, 3, {"chunked_context": False, "policy": "max_utilization"}, "is 9 tokens; max_num_tokens allows 8"),
        (5, 1, {"max_num_tokens": 3}, "context in one step is 4 tokens; max_num_tokens allows 3"),
    ],
)
def test_what_could_never_run_is_refused(prompt: int, max_tokens: int, change: dict, message: str) -> None:
    scheduler = Scheduler(replace(CONFIG, **change))
    with pytest.raises(InputRefused) as refusal:
        scheduler.submit(Request("x", [1] * prompt, max_tokens))
    assert message in str(refusal.value)
    assert scheduler.stats().active == 0


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "change"),
    [
        (19, 1, {}),
        (15, 1, {"num_blocks": 4}),
        (8, 9, {"chunked_context": False}),
        (7, 2, {"chunked_context": False, "policy": "max_utilization"}),
        (5, 1, {"max_num_tokens": 4}),
    ],
)
def test_what_just_fits_runs(prompt: int, max_tokens: int, change: dict) -> None:
    scheduler, requests = start(replace(CONFIG, **change), x=([1] * prompt, max_tokens))
    while step := scheduler.schedule():
        complete(scheduler, step, *[0 for work in step.works if work.emits])
    assert requests["x"].output == [0] * max_tokens


def test_a_full_queue_refuses_until_a_request_ends() -> None:
    """Two sequences in each of two micro-batches run at once; two more wait for their end in the executor's queue."""
    scheduler, requests = start(replace(CONFIG, max_queue_size=2), **{name: ([1], 5) for name in "abcdef"})
    full = "Maximum queue size of 2 has been reached, please try again later"
    with pytest.raises(Busy, match=full):
        scheduler.submit(Request("g", [1], 1))
    complete(scheduler, scheduler.schedule(), 7, 7)
    with pytest.raises(Busy, match=full):
        scheduler.submit(Request("g", [1], 1))
    scheduler.cancel(requests["a"])
    scheduler.submit(Request("g", [1], 1))


def test_more_requests_at_once_than_the_queue_holds_are_refused() -> None:
    """They all pass through the executor's queue, also when nothing runs."""
    scheduler = Scheduler(replace(CONFIG, max_queue_size=2))
    with pytest.raises(Busy, match="Maximum queue size of 2"):
        scheduler.submit(*(Request(name, [1], 1) for name in "abc"))
    scheduler.submit(*(Request(name, [1], 1) for name in "ab"))


def test_steps_complete_in_order_once_with_a_result_for_each_work_that_emits() -> None:
    scheduler, _ = start(CONFIG, a=([1] * 8, 2), b=([2] * 8, 2))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first
    assert second
    with pytest.raises(ValueError, match="in the order"):
        scheduler.complete(second, [0], [False])
    with pytest.raises(ValueError, match="emit"):
        scheduler.complete(first, [], [])
    with pytest.raises(ValueError, match="emit"):
        scheduler.complete(first, [0, 0], [False, False])
    scheduler.complete(first, [0], [False])
    with pytest.raises(ValueError, match="in the order"):
        scheduler.complete(first, [0], [False])
    scheduler.complete(second, [0], [False])


def test_a_new_pool_costs_nothing_however_many_blocks_it_has():
    pool = BlockPool(10**12, 64, reuse=True)
    assert (pool.free, pool.take([], 3)) == (10**12, [0, 1, 2])
    pool.release([0, 1, 2])
    assert pool.free == 10**12 and len(pool.idle) == 3
