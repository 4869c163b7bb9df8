"""Which steps are timed: all of them such as the scheduler itself makes."""

import pytest
import torch

from toolkit.calibrate.grid import Context, StepPlan, grid, powers
from toolkit.calibrate.ranks import affordable
from toolkit.engine.rehearsal.batch import encode
from toolkit.inflight import Request, Scheduler, SchedulerConfig


def config(**changes) -> SchedulerConfig:
    values = {"max_batch_size": 16, "max_num_tokens": 256, "micro_batches": 4, "num_blocks": 512}
    values |= {"tokens_per_block": 16, "policy": "guaranteed_no_evict", "chunked_context": True, "reuse": False}
    return SchedulerConfig(**{**values, "max_queue_size": 64, "max_seq_len": 512, **changes})


def test_what_a_step_computes_by_hand():
    plan = StepPlan((Context(8, 4), Context(0, 3, emits=False)), (5, 7))
    work = plan.work
    assert work.context_tokens == 7 and work.tokens == 9
    assert work.context_pairs == (9 + 10 + 11 + 12) + (1 + 2 + 3)
    assert (work.contexts, work.generations, work.keys, work.emitted) == (2, 2, 12, 3)


def test_a_step_is_what_the_scheduler_hands_out():
    """Two prompts of 40 tokens computed, then one token of each and a chunk of a third prompt beside them."""
    settings = config(max_num_tokens=82)
    scheduler = Scheduler(settings)
    for name, length in (("a", 40), ("b", 40), ("c", 200)):
        scheduler.submit(Request(name, list(range(length)), 8))
    first = scheduler.schedule()
    scheduler.complete(first, [1, 2], [False, False])
    theirs = scheduler.schedule()
    ours = StepPlan((Context(0, 80, emits=False),), (41, 41)).step(settings, 1000)
    assert [work[1:4] for work in ours.works] == [work[1:4] for work in theirs.works]
    assert ours.num_tokens == theirs.num_tokens == 82
    # Block tables differ in which blocks, not in how many; c was given those of its whole prompt.
    assert [len(work.blocks) for work in ours.generation] == [len(work.blocks) for work in theirs.generation]
    assert encode(ours, 16)[:3].tolist() == encode(theirs, 16)[:3].tolist() == [1, 2, 82]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_batch_size": 1},
        {"max_batch_size": 64, "num_blocks": 40},
        {"max_num_tokens": 17, "max_seq_len": 20},
        {"chunked_context": False, "max_num_tokens": 8192, "max_seq_len": 8192, "num_blocks": 512},
    ],
)
def test_every_step_is_within_the_limits_and_in_blocks_of_its_own(changes):
    settings = config(**changes)
    plans = grid(settings)
    assert len(plans) == len(set(plans)) > 2
    for plan in plans:
        step = plan.step(settings, 300)
        blocks = [block for work in step.works for block in work.blocks]
        assert len(blocks) == len(set(blocks)) and set(blocks) <= set(range(settings.num_blocks)), plan
        assert len(step.works) <= settings.max_batch_size and step.num_tokens <= settings.max_num_tokens
        for work in step.works:
            assert work.start + work.length <= len(work.blocks) * settings.tokens_per_block
            assert work.start + work.length < settings.max_seq_len
        assert torch.equal(encode(step, 16)[:2], torch.tensor([len(step.context), len(step.generation)]))


def test_every_kind_of_step_is_there():
    plans = grid(config())
    assert {plan.kind for plan in plans} == {"generation", "context", "mixed"}
    assert {plan.work.generations for plan in plans if plan.kind == "generation"} == {1, 2, 4, 8, 16}
    assert any(plan.contexts and plan.contexts[0].start for plan in plans), "a chunk with a past"
    assert any(not plan.work.emitted for plan in plans), "a chunk that is not the last"
    assert not any(plan.contexts and plan.contexts[0].start for plan in grid(config(chunked_context=False)))


def test_powers():
    assert powers(1, 16) == [1, 2, 4, 8, 16]
    assert powers(16, 100) == [16, 32, 64, 100]
    assert powers(256, 128) == []


def test_the_budget_leaves_out_the_longest_and_repeats_what_is_left():
    assert affordable([1.0, 0.1, 3.0], budget_s=10) == ([0, 1], 9)
    assert affordable([1.0, 0.1, 3.0], budget_s=21) == ([0, 1, 2], 5)
    assert affordable([0.001], budget_s=100) == ([0], 30)
    assert affordable([7.0, 9.0], budget_s=1) == ([0], 5), "never nothing at all"
