"""The four rules of TensorRT-LLM's executor loop, each as a schedule worked out by hand."""

import pytest

from toolkit.simulate import Simulation, simulate
from toolkit.workload import Planned, Traffic

from .steady import Steady, config, due_at, prompt


def run(times: Steady, *requests: tuple[float, int, int], **changed: int) -> Simulation:
    """Requests (due, prompt tokens, output tokens) through two micro-batches."""
    planned = tuple(Planned(due, prompt(n, length), output) for n, (due, length, output) in enumerate(requests))
    return simulate(
        Traffic(planned, 1.0, None, False), config(**{"micro_batches": 2, **changed}), times, record=(0, 99)
    )


def test_a_chunk_follows_the_one_before_on_each_stage():
    """64 tokens in chunks of 16 over two stages of 1 s:

    stage 0: 1 2 3 4
    stage 1:   1 2 3 4
    """
    times = Steady([1.0, 1.0])
    result = run(times, (0.0, 64, 1), max_num_tokens=16)
    assert result.seconds == 5
    assert [work.context_pairs for work in times.works] == [136, 392, 648, 904]  # sum: 64 x 65 / 2
    assert [work.emitted for work in times.works] == [0, 0, 0, 1]


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 16])
def test_a_prompt_in_chunks_takes_as_many_turns_as_chunks_and_stages(chunks, stages):
    """Chunks and stages of 0.25 s: the first chunk passes all stages, each other one ends a turn later."""
    traffic = due_at([0.0], prompt_tokens=16 * chunks)
    result = simulate(traffic, config(max_num_tokens=16, micro_batches=stages), Steady([0.25] * stages))
    assert result.seconds == (chunks + stages - 1) * 0.25


def test_a_new_request_joins_the_micro_batch_in_turn():
    """a has slot 0 from 0 to 2 s. b comes at 0.5 s, when the first stage is busy, and at 1 s it is free: b waits for
    a's token all the same, and goes with it through the stages from 2 to 4 s."""
    result = run(Steady([1.0, 1.0]), (0.0, 1, 3), (0.5, 1, 1), max_batch_size=2)
    assert [sample.token_times for sample in result.samples] == [(2, 4, 6), (4,)]


def test_a_step_is_decided_when_the_last_one_of_its_micro_batch_has_ended():
    """Stages of 3 and 1 s. Prompts a and b, of a step each: a ends at 4 s, b at 7 s. At 4 s a's next step is decided,
    and waits for the first stage until 6 s. c comes at 5 s, too late for it, and goes with b: 9-12, 12-13.
    """
    result = run(Steady([3.0, 1.0]), (0.0, 16, 2), (0.0, 16, 2), (5.0, 1, 1), max_batch_size=2, max_num_tokens=16)
    assert [sample.token_times for sample in result.samples] == [(4, 10), (7, 13), (13,)]


def test_a_request_that_comes_while_a_micro_batch_is_waited_for_waits_too():
    """One a micro-batch, stages of 1 s. a ends at 2 s; nothing else is there, so the loop waits for b, until 3 s. c
    comes at 2.5 s, when the first stage and a micro-batch are free, and begins after b: stage 0 from 4 to 5 s."""
    result = run(Steady([1.0, 1.0]), (0.0, 1, 1), (0.0, 1, 2), (2.5, 1, 1))
    assert [sample.token_times for sample in result.samples] == [(2,), (3, 5), (6,)]
    first_stage = [(interval.start, interval.micro_batch) for interval in result.intervals if interval.stage == 0]
    assert first_stage == [(0, 0), (1, 1), (3, 1), (4, 0)]


def test_with_nothing_in_flight_a_request_begins_at_once():
    result = run(Steady([1.0, 1.0]), (0.0, 1, 1), (2.5, 1, 1))
    assert [sample.token_times for sample in result.samples] == [(2,), (4.5,)]
