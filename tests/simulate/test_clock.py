"""Work and time by hand, and what they do to a pipeline whose stages share a processor."""

import pytest

from toolkit.simulate import simulate
from toolkit.simulate.work_clock import WorkClock

from .steady import Steady, config, due_at


def test_work_goes_on_at_the_pace_that_was_set():
    clock = WorkClock()
    clock.set_pace(2.0, 4.0)  # 2 s of work so far; from now on a second of it takes 4
    assert clock.at(6.0) == 3.0
    assert clock.time_of(3.0) == 6.0 and clock.time_of(10.0) == 34.0
    clock.set_pace(6.0, 1.0)
    assert clock.at(7.5) == 4.5
    assert [clock.time_of(work) for work in (0.5, 2.0, 2.5, 3.0, 5.0)] == [0.5, 2.0, 4.0, 6.0, 8.0]
    clock.forget()
    assert clock.time_of(5.0) == 8.0 and clock.at(8.0) == 5.0


def test_a_step_is_slow_while_another_shares_the_processor():
    """Two stages of 1 s on one core. The first request works alone for 1 s, then the second begins: both at half pace
    until the first has ended, 2 s later, and the second has its last second of work alone."""
    run = simulate(due_at([0.0, 1.0]), config(micro_batches=2), Steady([1.0, 1.0], cores=1), record=(0, 99))
    first, second = run.samples
    assert first.token_times == pytest.approx((3.0,)) and second.token_times == pytest.approx((4.0,))
    spans = {(i.stage, i.micro_batch): (i.start, i.end) for i in run.intervals}
    assert spans[0, 0] == pytest.approx((0.0, 1.0)) and spans[1, 0] == pytest.approx((1.0, 3.0))
    assert spans[0, 1] == pytest.approx((1.0, 3.0)) and spans[1, 1] == pytest.approx((3.0, 4.0))
    assert run.utilisation[0] == pytest.approx((3 / 4, 3 / 4))
