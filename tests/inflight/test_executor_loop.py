"""The four rules of TensorRT-LLM's executor loop, each against a trace worked out by hand from its source."""

from dataclasses import replace

from tests.inflight.traces import CONFIG, complete, described, start
from toolkit.inflight import Request, State


def test_chunks_of_one_prompt_go_into_one_micro_batch_after_the_other() -> None:
    """14 positions in chunks of 4, three micro-batches: only the last chunk keeps the sequence out of the next."""
    scheduler, _ = start(replace(CONFIG, micro_batches=3, max_num_tokens=4), a=([1] * 14, 3))
    table = [0, 1, 2, 3]
    first, second, third = scheduler.schedule(), scheduler.schedule(), scheduler.schedule()
    assert described(first) == (0, [("a", 0, 4, False, table)], [])
    assert described(second) == (1, [("a", 4, 4, False, table)], [])
    assert described(third) == (2, [("a", 8, 4, False, table)], [])
    assert scheduler.schedule() is None
    stats = scheduler.stats()
    assert (stats.active, stats.scheduled, stats.context, stats.waiting, stats.context_tokens) == (1, 1, 1, 0, 12)

    complete(scheduler, first)
    last = scheduler.schedule()
    assert described(last) == (0, [("a", 12, 2, True, table)], [])
    for earlier in (second, third):  # their micro-batches have nothing to run: the token has to be known first
        complete(scheduler, earlier)
        assert scheduler.schedule() is None
    complete(scheduler, last, 7)
    assert described(scheduler.schedule()) == (0, [], [("a", 14, 1, True, table)])
    assert scheduler.schedule() is None


def test_chunks_leave_room_for_the_generations_of_each_micro_batch() -> None:
    """A step of 6 positions: with a generation in it 5 are left, which is one whole block of the prompt."""
    config = replace(CONFIG, max_num_tokens=6)
    scheduler, _ = start(config, a=([1, 2], 3), long=([3] * 12, 1))
    one, two = scheduler.schedule(), scheduler.schedule()
    assert described(one) == (0, [("a", 0, 2, True, [0]), ("long", 0, 4, False, [1, 2, 3])], [])
    assert described(two) == (1, [("long", 4, 4, False, [1, 2, 3])], [])  # 6 positions, of which whole blocks
    complete(scheduler, one, 9)
    assert described(scheduler.schedule()) == (
        0, [("long", 8, 4, True, [1, 2, 3])], [("a", 2, 1, True, [0])],
    )  # fmt: skip


def test_a_new_request_joins_the_generations_of_the_micro_batch_in_turn_until_that_is_full() -> None:
    """Two a micro-batch. b joins a, although the other micro-batch is empty; c and d get that one."""
    scheduler, _ = start(CONFIG, a=([1], 9))
    one = scheduler.schedule()
    assert described(one) == (0, [("a", 0, 1, True, [0])], [])
    assert scheduler.schedule() is None  # slot 1 has nothing to run
    for name, token in (("b", 2), ("c", 3)):
        scheduler.submit(Request(name, [token], 3))
    complete(scheduler, one, 9)
    two, three = scheduler.schedule(), scheduler.schedule()
    assert described(two) == (0, [("b", 0, 1, True, [1])], [("a", 1, 1, True, [0])])
    assert described(three) == (1, [("c", 0, 1, True, [2])], [])
    scheduler.submit(Request("d", [4], 3))
    complete(scheduler, two, 8, 9)
    four = scheduler.schedule()
    assert described(four) == (0, [], [("a", 2, 1, True, [0]), ("b", 1, 1, True, [1])])
    complete(scheduler, three, 8)
    assert described(scheduler.schedule()) == (1, [("d", 0, 1, True, [3])], [("c", 1, 1, True, [2])])


def test_a_micro_batch_is_decided_when_its_last_step_has_ended() -> None:
    """One a micro-batch, three requests: the third gets the place of the first to end, and no place before."""
    scheduler, requests = start(replace(CONFIG, max_batch_size=1), a=([1], 1), b=([2], 2), c=([3], 1))
    one, two = scheduler.schedule(), scheduler.schedule()
    assert described(one) == (0, [("a", 0, 1, True, [0])], [])
    assert described(two) == (1, [("b", 0, 1, True, [1])], [])
    assert scheduler.schedule() is None  # whatever is free
    complete(scheduler, one, 9)
    assert requests["a"].state is State.FINISHED
    three = scheduler.schedule()
    assert described(three) == (0, [("c", 0, 1, True, [0])], [])
    complete(scheduler, two, 8)
    assert described(scheduler.schedule()) == (1, [], [("b", 1, 1, True, [1])])


def test_requests_come_in_between_two_micro_batches_and_not_while_one_is_waited_for() -> None:
    """One a micro-batch: slot 0 has nothing left, slot 1 is waited for. What comes now waits for that, too; then slot 1
    has its turn, and after it slot 0."""
    scheduler, _ = start(replace(CONFIG, max_batch_size=1), a=([1], 1), b=([2], 3))
    one, two = scheduler.schedule(), scheduler.schedule()
    complete(scheduler, one, 9)
    assert scheduler.schedule() is None
    for name, token in (("c", 3), ("d", 4)):
        scheduler.submit(Request(name, [token], 1))
        assert scheduler.schedule() is None
    complete(scheduler, two, 8)
    three, four = scheduler.schedule(), scheduler.schedule()
    assert described(three) == (1, [], [("b", 1, 1, True, [1])])
    assert described(four) == (0, [("c", 0, 1, True, [0])], [])
    assert scheduler.schedule() is None


def test_with_nothing_in_flight_a_request_begins_at_once() -> None:
    scheduler, _ = start(CONFIG)
    assert scheduler.schedule() is None
    scheduler.submit(Request("a", [1], 1))
    assert described(scheduler.schedule()) == (0, [("a", 0, 1, True, [0])], [])


def test_cancelled_while_chunks_are_in_flight() -> None:
    """No chunk follows; its blocks come back with the last of those that are under way."""
    scheduler, requests = start(replace(CONFIG, max_num_tokens=4), a=([1] * 14, 3))
    one, two = scheduler.schedule(), scheduler.schedule()
    scheduler.cancel(requests["a"])
    complete(scheduler, one)
    stats = scheduler.stats()
    assert (stats.active, stats.scheduled, stats.blocks_used) == (1, 1, 4)
    assert scheduler.schedule() is None
    complete(scheduler, two)
    stats = scheduler.stats()
    assert (stats.active, stats.scheduled, stats.blocks_used) == (0, 0, 0)


def test_paused_while_a_chunk_is_in_flight() -> None:
    """The chunk counts for nothing then. Its blocks go to an older sequence, in a later step, which each stage computes
    later. Blocks of 2: a has two of five, b the others, when a needs a third."""
    config = replace(CONFIG, num_blocks=5, tokens_per_block=2, max_num_tokens=4, reuse=False, policy="max_utilization")
    scheduler, requests = start(config, a=([1, 2, 3, 4], 3), b=([5] * 6, 1))
    b = requests["b"]
    one, two = scheduler.schedule(), scheduler.schedule()
    assert described(one) == (0, [("a", 0, 4, True, [0, 1])], [])
    assert described(two) == (1, [("b", 0, 4, False, [2, 3, 4])], [])
    complete(scheduler, one, 9)
    three = scheduler.schedule()
    assert described(three) == (0, [], [("a", 4, 1, True, [0, 1, 2])])
    assert (b.state, b.blocks, b.in_flight) == (State.PAUSED, [], 1)
    stats = scheduler.stats()
    assert (stats.active, stats.scheduled, stats.waiting, stats.paused) == (2, 2, 0, 1)
    complete(scheduler, two)
    assert (b.computed, b.scheduled, b.in_flight) == (0, 0, 0)
    assert scheduler.schedule() is None  # two blocks are left, b needs three
    complete(scheduler, three, 8)
    four = scheduler.schedule()
    assert described(four) == (0, [], [("a", 5, 1, True, [0, 1, 2])])
    assert scheduler.schedule() is None
    complete(scheduler, four, 7)
    five, six = scheduler.schedule(), scheduler.schedule()
    assert described(five) == (0, [("b", 0, 4, False, [0, 1, 2])], [])
    assert described(six) == (1, [("b", 4, 2, True, [0, 1, 2])], [])
